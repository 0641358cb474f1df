"""Calibration on bad input: early errors that name the leaf and the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec as P

import jaxsparse as js


PARAMS = {"w": np.ones((16, 8), np.float32)}
RULES = [js.Rule(".*", "2:4", axis=0)]
X = np.ones((20, 16), np.float32)


def multiply(params, x):
    return x @ params["w"]


def collect(*batches, fn=multiply, params=PARAMS, rules=RULES, **options):
    return js.collect_statistics(fn, params, list(batches), plan=rules, **options)


def test_no_batches():
    with pytest.raises(ValueError, match="there are no batches"):
        collect()


@pytest.mark.parametrize("number", [0, 2])
def test_a_batch_whose_shapes_do_not_fit_is_named(number):
    batches = [X] * 3
    batches[number] = np.ones((20, 15), np.float32)
    with pytest.raises(TypeError) as caught:
        collect(*batches)
    assert f"in batch {number}, whose shapes are (20, 15)" in caught.value.__notes__


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_activations_that_are_not_finite_are_named_with_their_batch(value):
    bad = X.copy()
    bad[3, 5] = value
    message = r"inputs of leaf 'w' of shape \(16, 8\) are not finite.* in batch 1:"
    for statistic in ("mean_square", "second_moment"):
        with pytest.raises(ValueError, match=message):
            collect(X, bad, X, bad, statistic=statistic)


def test_no_tokens():
    with pytest.raises(ValueError, match=r"leaf 'w' of shape .* met no tokens"):
        collect(X, weights=lambda x: x[:, 0] > 2)


def test_weights_that_do_not_fit():
    message = r"leaf 'w' of shape \(16, 8\): weights of shape \(7,\) do not fit tokens"
    with pytest.raises(ValueError, match=message):
        collect(X, weights=lambda _: jnp.ones(7))
    # Of a time-major sequence the second axis counts examples: nothing is guessed.
    with pytest.raises(ValueError, match=r"weights of shape \(3, 2\) do not fit"):
        collect(np.ones((2, 3, 16), np.float32), weights=lambda _: jnp.ones((3, 2)))


MESH = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))


def gathered(params, x):
    return params["w"][jnp.zeros(len(x), int)] + x @ params["w"]


def sorted_first(params, x):
    return x @ jnp.sort(params["w"], axis=0)


def not_multiplied(params, x):
    return x + jnp.sum(params["w"] ** 2)


def sharded(params, x):
    run = jax.shard_map(jnp.matmul, mesh=MESH, in_specs=(P("i"), P()), out_specs=P("i"))
    return run(x, params["w"])


def two_parts(params, x):
    return (x @ params["w"]) @ params["w"].T


def in_a_condition(params, x):
    return lax.while_loop(lambda x: (x @ params["w"]).sum() < 9, lambda x: x + 1, x)


def split_axis(params, x):
    return jnp.einsum("tk,ako->tao", x[:, :8], params["w"].reshape(2, 8, 8))


@pytest.mark.parametrize(
    ("fn", "why"),
    [
        (gathered, "gather"),
        (sorted_first, "sort"),
        (not_multiplied, "fn does not multiply inputs by it"),
        (sharded, "inside shard_map"),
        (split_axis, "its axis 0 is split into inputs and outputs"),
        (two_parts, "products use its axes differently|groups lie along axis 0"),
        (in_a_condition, "condition of a loop|does not multiply"),
    ],
)
def test_leaves_whose_inputs_cannot_be_read(fn, why):
    message = rf"inputs of leaf 'w' of shape \(16, 8\) can't be read: .*({why})"
    with pytest.raises(ValueError, match=message):
        collect(X, fn=fn)


def test_groups_along_another_axis_than_the_function_sums_over():
    rules = [js.Rule(".*", "2:4", axis=1, sizes=None)]
    with pytest.raises(
        ValueError, match="groups lie along axis 1, but a product contracts 0"
    ):
        collect(X, rules=rules)


@pytest.mark.parametrize("kind", [js.WandaSearcher, js.SparseGPTSearcher])
def test_statistics_that_a_search_cannot_use(kind):
    searcher = kind(RULES)
    with pytest.raises(ValueError, match="no statistics of leaf 'w' of shape"):
        searcher.search(PARAMS)
    with pytest.raises(ValueError, match="no statistics of leaf 'w'"):
        searcher.search(PARAMS, {})
    other = collect(X, params={"w": np.ones((16, 24), np.float32)})
    with pytest.raises(ValueError, match=r"shape \(16, 24\), but it has shape \(16, 8"):
        searcher.search(PARAMS, other)
    with pytest.raises(ValueError, match=r"all inputs of leaf 'w' .* were zero"):
        searcher.search(PARAMS, collect(0 * X))
    statistics = collect(X)["w"]
    broken = js.LeafStatistics(
        statistics.moments * jnp.nan, statistics.tokens, statistics.columns
    )
    with pytest.raises(ValueError, match=r"statistics of leaf 'w' .* are not finite"):
        searcher.search(PARAMS, {"w": broken})


def test_an_expert_that_no_token_reached_is_named():
    fn = lambda params, x, sizes: lax.ragged_dot(x, params["w"], sizes)
    params = {"w": np.arange(384, dtype=np.float32).reshape(3, 16, 8)}
    rules = [js.Rule(".*", "2:4", axis=1)]
    statistics = collect((X, np.array([12, 0, 8])), fn=fn, params=params, rules=rules)
    with pytest.warns(UserWarning, match=r"no tokens: 1 of 3 of leaf 'w' \(1\)"):
        js.WandaSearcher(rules).search(params, statistics)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_would_spread_are_refused(value):
    statistics, params = collect(X), {"w": np.ones((16, 8), np.float32)}
    params["w"][3, 2] = value
    message = r"leaf 'w' of shape \(16, 8\) has weights that are not finite"
    with pytest.raises(ValueError, match=message):
        js.SparseGPTSearcher(RULES).search(params, statistics)
    masks = js.create_masks(params, RULES)
    with pytest.raises(ValueError, match=message):
        js.fit_weights(params, masks, statistics)


def test_what_sparsegpt_does_not_search():
    statistics = collect(X)
    block = [js.Rule(".*", js.Block((4, 4), 0.5), axis=0)]
    with pytest.raises(ValueError, match=r"leaf 'w' .*4x4 blocks.* fit_weights"):
        js.SparseGPTSearcher(block).search(PARAMS, statistics)
    squares = collect(X, statistic="mean_square")
    with pytest.raises(ValueError, match="statistic='second_moment'"):
        js.SparseGPTSearcher(RULES).search(PARAMS, squares)
    whole = {"w": np.ones((16, 8), np.int8)}
    with pytest.raises(TypeError, match=r"leaf 'w' of shape \(16, 8\) has dtype int8"):
        js.SparseGPTSearcher(RULES).search(whole, statistics)
    for wrong in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="damping must be a positive fraction"):
            js.SparseGPTSearcher(damping=wrong)
