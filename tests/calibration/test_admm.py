"""ADMM, against its steps in float64 and against what it must not be worse than."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse._calibration.admm import admm
from jaxsparse._calibration.projections import projection
from tests.calibration import (
    admm_oracle as oracle,
    refinement_oracle,
    sparsegpt_oracle,
)


def rules(pattern, axis=0):
    return [js.Rule(".*", pattern, axis=axis, sizes=None)]


def layer(seed, inputs, outputs):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(inputs, outputs)).astype(np.float32)
    x = sparsegpt_oracle.correlated(rng, 20 * inputs, inputs)
    return {"w": weight}, x


def multiply(params, x):
    return x @ params["w"]


def calibrated(params, x, pattern, fn=multiply, axis=0):
    return js.collect_statistics(fn, params, [x], plan=rules(pattern, axis))


def shrunk(x, shrinkage=0.1):
    x = x.astype(np.float64)
    return sparsegpt_oracle.shrunk(x.T @ x / len(x), shrinkage)


CASES = {
    "2:4": (js.NM(2, 4), 2, oracle.n_of_m(2, 4)),
    "3:8": (js.NM(3, 8), 3, oracle.n_of_m(3, 8)),
    "transposable": (js.NM(2, 4, transposable=True), 2, oracle.transposable(2, 4)),
    "per output": (js.PerOutput(0.5), 12, oracle.per_output(12)),
    "unstructured": (js.Unstructured(0.75), 48, oracle.blocks(48, 1, 1)),
    "blocks": (js.Block((4, 2), 0.5), 12, oracle.blocks(12, 4, 2)),
}


@pytest.mark.sweep(keep=["3-2:4", "300-blocks"], full=["[12-"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("steps", [3, 12, 300])
def test_its_steps_are_those_of_the_reference(steps, case):
    pattern, kept, project = CASES[case]
    params, x = layer(1, 24, 8)
    moment = shrunk(x)
    run = jax.jit(
        lambda w, h: admm(w, h, projection(pattern, jnp.asarray(kept)), steps)
    )
    weight, mask = run(jnp.asarray(params["w"]), jnp.asarray(moment, jnp.float32))
    expected, expected_mask = oracle.admm(params["w"], moment, project, steps)
    np.testing.assert_array_equal(mask, expected_mask)
    np.testing.assert_array_equal(np.asarray(weight)[~np.asarray(mask)], 0)
    least = refinement_oracle.error(params["w"], expected, moment)
    ours = refinement_oracle.error(params["w"], weight, moment)
    assert least * (1 - 1e-6) <= ours <= least * (1 + 1e-3)


PATTERNS = {
    "2:4": "2:4",
    "4:8": "4:8",
    "1:4": "1:4",
    "per output": js.PerOutput(0.5),
    "unstructured": js.Unstructured(0.9),
}


@pytest.mark.sweep(keep=["3-False-2:4"], full=["[50-"])
@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("correlated", [True, False])
@pytest.mark.parametrize("layers", [3, 50])
def test_no_layer_is_worse_than_by_sparsegpt(layers, correlated, name):
    """Of inputs that are hardly correlated ADMM has nothing to gain, and may lose."""
    rng, pattern = np.random.default_rng(0), PATTERNS[name]
    params = {"w": rng.normal(size=(layers, 64, 32)).astype(np.float32)}
    x = rng.normal(size=(layers, 512, 64)).astype(np.float32)
    if correlated:
        x = np.stack([sparsegpt_oracle.correlated(rng, 512, 64) for _ in x])
    plan = rules(pattern, axis=1)
    fn = lambda params, x: jnp.einsum("lti,lio->lto", x, params["w"])
    statistics = calibrated(params, x, pattern, fn, axis=1)
    moments = [shrunk(inputs) for inputs in x]

    def errors(searcher):
        weights = np.asarray(searcher.search(params, statistics).params["w"])
        return np.array(
            list(map(refinement_oracle.error, params["w"], weights, moments))
        )

    ours, sparsegpt = errors(js.ADMMSearcher(plan)), errors(js.SparseGPTSearcher(plan))
    assert (ours <= sparsegpt).all()
    if correlated:
        assert np.median(ours / sparsegpt) < 0.85
    if name == "2:4":
        refined = errors(js.ADMMSearcher(plan, refine=5))
        assert (refined <= ours * (1 + 1e-6)).all()


@pytest.mark.sweep(full=["[2-", "[3-", "[4-", "[1-transposable]"])
@pytest.mark.parametrize("case", ["transposable", "blocks"])
@pytest.mark.parametrize("seed", range(5))
def test_other_patterns_are_never_worse_than_wandas_mask_fitted(seed, case):
    pattern = CASES[case][0]
    plan = rules(pattern)
    params, x = layer(seed, 32, 16)
    moment = shrunk(x)
    statistics = calibrated(params, x, pattern)
    result = js.ADMMSearcher(plan).search(params, statistics)
    js.check_sparsity(result.params, plan)
    scaled = params["w"] * np.sqrt(np.diag(moment))[:, None]
    masks = js.create_masks({"w": scaled**2}, plan)
    fitted = oracle.least_squares(params["w"], np.asarray(masks["w"]), moment)
    ours = refinement_oracle.error(params["w"], result.params["w"], moment)
    wanda = refinement_oracle.error(params["w"], fitted, moment)
    assert ours <= wanda * (1 + 1e-4)
    if case == "transposable":
        assert ours < 0.95 * wanda


@pytest.mark.sweep
def test_problems_of_a_leaf_keep_equal_shares_and_dead_inputs_change_nothing():
    rng = np.random.default_rng(2)
    params = {"w": rng.normal(size=(3, 16, 8)).astype(np.float32)}
    x = np.stack([sparsegpt_oracle.correlated(rng, 200, 16) for _ in range(3)])
    x[:, :, [1, 4, 5, 6]] = 0
    fn = lambda params, x: jnp.einsum("lti,lio->lto", x, params["w"])
    plan = rules(js.Unstructured(0.7), axis=1)
    statistics = calibrated(params, x, js.Unstructured(0.7), fn, axis=1)
    result = js.ADMMSearcher(plan, packed=True).search(params, statistics)
    kept = np.asarray(result.params["w"]) != 0
    # Of 384 weights 115 are kept: 38, 38 and 39.
    assert sorted(kept.sum((1, 2))) == [38, 38, 39]
    assert not kept[:, [1, 4, 5, 6]].any()
    assert result.masks["w"].dtype == jnp.uint8


@pytest.mark.sweep
def test_weights_come_back_in_their_dtype_under_strict_promotion():
    params, x = layer(3, 16, 8)
    narrow = {"w": jnp.asarray(params["w"], jnp.bfloat16)}
    statistics = calibrated(params, x, "2:4")
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        result = js.ADMMSearcher(rules("2:4"), refine=2).search(narrow, statistics)
    assert result.params["w"].dtype == jnp.bfloat16
    js.check_sparsity(result.params, rules("2:4"))


def test_what_it_does_not_support_is_refused():
    params, x = layer(4, 16, 8)
    statistics = calibrated(params, x, "2:4")
    for pattern in (js.Channel(0.5), js.Unstructured(0.5, across_leaves=True)):
        with pytest.raises(ValueError, match=r"leaf 'w' of shape \(16, 8\).*fit_weigh"):
            js.ADMMSearcher(rules(pattern)).search(params, statistics)
    twice = rules(js.NM(2, 4, transposable=True))
    with pytest.raises(ValueError, match=r"cannot be refined.*search with refine=0"):
        js.ADMMSearcher(twice, refine=1).search(params, statistics)
    for wrong in ({"steps": 0}, {"refine": -1}, {"shrinkage": 2.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            js.ADMMSearcher(**wrong)
    with pytest.raises(ValueError, match="no statistics of leaf 'w'"):
        js.ADMMSearcher(rules("2:4")).search(params)


def test_blocks_that_cross_feature_groups_are_refused():
    kernel = np.random.default_rng(5).normal(size=(1, 1, 8, 12)).astype(np.float32)
    image = np.ones((4, 5, 5, 16), np.float32)

    def fn(params, x):
        return jax.lax.conv_general_dilated(
            x,
            params["w"],
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=2,
        )

    pattern = js.Block((4, 4), 0.5)
    statistics = calibrated({"w": kernel}, image, pattern, fn, axis=2)
    with pytest.raises(ValueError, match="2 feature groups has 6 outputs"):
        js.ADMMSearcher(rules(pattern, axis=2)).search({"w": kernel}, statistics)
