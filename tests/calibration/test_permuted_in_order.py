"""`prune_sequentially(permute=True)` equals permuting first and pruning then."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse._calibration import permute_first
from jaxsparse._channels import permutation_search


_RANDOM = np.random.default_rng(0)


def normal(*shape):
    return _RANDOM.normal(size=shape).astype(np.float32)


PARAMS = {
    "first": {"up": normal(16, 32), "bias": normal(32), "down": normal(32, 16)},
    "second": {"up": normal(16, 32), "bias": normal(32), "down": normal(32, 16)},
}
SCALES = np.linspace(0.1, 3, 16, dtype=np.float32)
BATCHES = [normal(96, 16) * SCALES for _ in range(3)]
RULES = [js.Rule(".*(up|down)", "2:4", axis=0)]
STAGES = ["first/.*", "second/.*"]


def network(params, x):
    for block in ("first", "second"):
        p = params[block]
        x = x + jax.nn.relu(x @ p["up"] + p["bias"]) @ p["down"]
    return x


@pytest.fixture(autouse=True)
def short_search(monkeypatch):
    monkeypatch.setattr(permutation_search, "_ANNEALED_STEPS", 20)


def prune(make=js.SparseGPTSearcher, batches=BATCHES, **options):
    return js.prune_sequentially(
        network, PARAMS, batches, make(RULES), boundaries=STAGES, **options
    )


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.sweep(keep=["Magnitude"], full=["ADMM"])
@pytest.mark.parametrize(
    "make",
    [js.SparseGPTSearcher, js.WandaSearcher, js.ADMMSearcher, js.MagnitudeSearcher],
)
def test_it_is_permuting_with_fitting_scores_and_pruning_then(make):
    result = prune(make, held_out=0.5, permute=True)
    scores = None
    if make is not js.MagnitudeSearcher:
        read = BATCHES[::2]  # every second batch is held out
        statistics = js.collect_statistics(
            network, PARAMS, read, plan=RULES, statistic="mean_square"
        )
        scores = js.wanda_scores(PARAMS, statistics)
    first = js.permute_channels(PARAMS, RULES, network, (BATCHES[0],), scores=scores)
    then = js.prune_sequentially(
        network, first.params, BATCHES, make(RULES), boundaries=STAGES, held_out=0.5
    )
    equal(result[:2], then[:2])
    assert then.permutation is None
    equal(result.permutation.permutations, first.permutations)
    assert result.permutation.gains == first.gains


def test_the_dense_model_is_there_in_the_new_order():
    result = prune(js.MagnitudeSearcher, permute=True)
    moved = result.permutation
    gains = [moved.gains[number] for number in moved.permutations]
    assert all(gain.after > gain.before for gain in gains)
    assert len(gains) == 2
    before, after = network(PARAMS, BATCHES[0]), network(moved.params, BATCHES[0])
    np.testing.assert_allclose(after, before, atol=1e-6 * np.abs(before).max())
    equal(moved.invert(moved.params), PARAMS)
    pruned = js.mask_params(moved.params, result.masks)
    equal(result.params, pruned)
    kept = lambda tree: sum(np.abs(x).sum() for x in jax.tree.leaves(tree))
    assert kept(result.params) > kept(prune(js.MagnitudeSearcher).params)


@pytest.mark.sweep
def test_a_resumed_run_has_the_permutation_of_the_first(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    wanda = partial(prune, js.WandaSearcher)
    expected = wanda(permute=True)
    with pytest.raises(KeyboardInterrupt):
        wanda(permute=True, recalibrate=interrupt, checkpoint=tmp_path)
    assert sorted(x.stem for x in tmp_path.iterdir()) == ["permutations", "stage_0000"]
    with pytest.raises(ValueError, match="checkpoint of other parameters"):
        wanda(checkpoint=tmp_path)
    monkeypatch.setattr(permute_first, "permute_channels", None)  # is not searched anew
    result = wanda(permute=True, checkpoint=tmp_path)
    equal(result[:2], expected[:2])
    one, other = result.permutation, expected.permutation
    assert one is not None
    assert other is not None
    equal(one[:2], other[:2])
    assert one[2:] == other[2:]
    with pytest.raises(
        ValueError, match=r"permutations.npz is the checkpoint of other"
    ):
        wanda(permute=True, batches=BATCHES[:2], checkpoint=tmp_path)


@pytest.mark.sweep
def test_padding_does_not_count():
    mask = jnp.arange(96) < 80
    padded = [np.where(mask[:, None], x, np.nan) for x in BATCHES]
    result = prune(js.WandaSearcher, padded, weights=lambda _: mask, permute=True)
    alone = prune(js.WandaSearcher, [x[:80] for x in BATCHES], permute=True)
    for number, order in alone.permutation.permutations.items():
        np.testing.assert_array_equal(result.permutation.permutations[number], order)
    equal(result.masks, alone.masks)
