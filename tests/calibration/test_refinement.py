"""Refinement of masks and weights, against brute force in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

import jaxsparse as js
from tests.calibration import refinement_oracle as oracle, sparsegpt_oracle
from tests.thorough import thorough


def rules(pattern, axis=0):
    return [js.Rule(".*", pattern, axis=axis, sizes=None)]


def layer(seed, inputs, outputs, tokens=None):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(inputs, outputs)).astype(np.float32)
    x = sparsegpt_oracle.correlated(rng, tokens or 8 * inputs, inputs)
    return {"w": weight}, x


def calibrated(params, x, pattern):
    fn = lambda params, x: x @ params["w"]
    return js.collect_statistics(fn, params, [x], plan=rules(pattern))


def shrunk(x, shrinkage):
    x = x.astype(np.float64)
    return sparsegpt_oracle.shrunk(x.T @ x / len(x), shrinkage)


def assert_same(result, weight, mask):
    np.testing.assert_array_equal(result.masks["w"], mask)
    scale = abs(weight).max()
    np.testing.assert_allclose(result.params["w"], weight, atol=1e-4 * scale)
    np.testing.assert_array_equal(np.asarray(result.params["w"])[~mask], 0)


@pytest.mark.sweep(keep=["pattern0"])
@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (2, 3), (4, 8), (7, 8)])
def test_a_single_group_gets_the_best_of_all_its_masks_and_weights(pattern):
    n, m = pattern
    params, x = layer(1, m, 20, 400)
    masks = {"w": np.tile((np.arange(m) < n)[:, None], 20)}
    result = js.refine_masks(
        params,
        masks,
        calibrated(params, x, pattern),
        plan=rules(pattern),
        sweeps=1,
        shrinkage=0.0,
    )
    start, moment = np.where(masks["w"], params["w"], 0), shrunk(x, 0.0)
    weight = oracle.sweep_groups(params["w"], start, moment, n, m, 1)
    js.check_sparsity(result.params, rules(pattern))
    for output in range(20):
        errors = [
            oracle.error(params["w"][:, output], v[:, output], moment)
            for v in (weight, result.params["w"], 0 * weight)
        ]
        assert errors[1] <= (1 + 1e-4) * errors[0] + 1e-6 * errors[2]


@pytest.mark.sweep(keep=["150-pattern0", "3-pattern1"])
@pytest.mark.parametrize("pattern", [(2, 4), (3, 4), (2, 6), (1, 2)])
@pytest.mark.parametrize("inputs", [24, 150, 3])
def test_sweeps_over_groups_are_those_of_the_reference(inputs, pattern):
    """One block of inputs, several with a rest, and a single group."""
    n, m = pattern
    inputs = max(1, inputs // m) * m
    params, x = layer(inputs, inputs, 3)
    masks = js.create_masks(params, rules(pattern))
    result = js.refine_masks(
        params, masks, calibrated(params, x, pattern), plan=rules(pattern), sweeps=2
    )
    start = js.mask_params(params, masks)["w"]
    weight = oracle.sweep_groups(params["w"], start, shrunk(x, 0.1), n, m, 2)
    assert_same(result, weight, weight != 0)


@pytest.mark.sweep
@pytest.mark.parametrize("sweeps", [1, 2])
@pytest.mark.parametrize("sparsity", [0.5, 0.8])
def test_swaps_within_outputs_are_those_of_the_reference(sparsity, sweeps):
    params, x = layer(2, 24, 35)  # more outputs than a tile
    plan = rules(js.PerOutput(sparsity))
    masks = js.create_masks(params, plan)
    result = js.refine_masks(
        params, masks, calibrated(params, x, "2:4"), plan=plan, sweeps=sweeps
    )
    start = js.mask_params(params, masks)["w"]
    weight, mask = oracle.swap_pairs(
        params["w"], start, masks["w"], shrunk(x, 0.1), sweeps
    )
    assert_same(result, weight, mask)
    js.check_sparsity(result.params, plan)


@pytest.mark.sweep
def test_unstructured_masks_keep_their_number_of_weights():
    params, x = layer(3, 16, 8)
    plan = rules(js.Unstructured(0.6))
    masks = js.create_masks(params, plan)
    result = js.refine_masks(params, masks, calibrated(params, x, "2:4"), plan=plan)
    kept = np.asarray(result.masks["w"])
    np.testing.assert_array_equal(kept.sum(0), np.asarray(masks["w"]).sum(0))
    moment = shrunk(x, 0.1)
    before = oracle.error(params["w"], js.mask_params(params, masks)["w"], moment)
    assert oracle.error(params["w"], result.params["w"], moment) < 0.9 * before


PATTERNS = [
    (2, 4),
    (1, 4),
    (3, 4),
    (2, 3),
    (1, 2),
    js.PerOutput(0.5),
    js.PerOutput(0.8),
]


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore:.*fewer")
@given(
    seed=st.integers(0, 10**6),
    pattern=st.sampled_from(PATTERNS),
    shrinkage=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    tokens=st.sampled_from([6, 100]),
    dead=st.integers(0, 5),
)
@thorough(120)
def test_no_sweep_makes_a_layer_worse(seed, pattern, shrinkage, tokens, dead):
    check_sweeps(seed, pattern, shrinkage, tokens, dead)


@pytest.mark.sweep
@pytest.mark.parametrize("pattern", [(2, 4), js.PerOutput(0.5)])
def test_no_sweep_makes_one_layer_worse(pattern):
    check_sweeps(0, pattern, 0.1, 100, 2)


def check_sweeps(seed, pattern, shrinkage, tokens, dead):
    """Errors fall from sweep to sweep, the pattern holds, and zeros are exact."""
    params, x = layer(seed, 12, 6, tokens)
    random = np.random.default_rng(seed)
    x[:, random.permutation(12)[:dead]] = 0
    plan, moment = rules(pattern), shrunk(x, shrinkage)
    scores = {"w": random.normal(size=(12, 6)).astype(np.float32)}
    masks = js.create_masks(params, plan, scores=scores)
    errors = [oracle.error(params["w"], js.mask_params(params, masks)["w"], moment)]
    statistics = calibrated(params, x, "2:4")
    for sweeps in (1, 2, 5, 20):
        result = js.refine_masks(
            params, masks, statistics, plan=plan, sweeps=sweeps, shrinkage=shrinkage
        )
        js.check_sparsity(result.params, plan)
        kept = np.asarray(result.masks["w"])
        np.testing.assert_array_equal(np.asarray(result.params["w"])[~kept], 0)
        errors.append(oracle.error(params["w"], result.params["w"], moment))
    rounding = 1e-6 * oracle.error(params["w"], 0 * params["w"], moment)
    assert (np.diff(errors) <= rounding).all(), errors


@pytest.mark.sweep(keep=["2:4-3"], full=["4:8-50", "pattern2-50", "2:4-50"])
@pytest.mark.parametrize("layers", [3, 50])
@pytest.mark.parametrize("pattern", ["2:4", "4:8", js.PerOutput(0.5)])
def test_refined_layers_are_never_worse_than_those_of_sparsegpt(pattern, layers):
    """By the shrunk second moment, and by the inputs themselves."""
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(layers, 64, 32)).astype(np.float32)}
    x = np.stack([sparsegpt_oracle.correlated(rng, 512, 64) for _ in range(layers)])
    plan = rules(pattern, axis=1)
    fn = lambda params, x: jnp.einsum("lti,lio->lto", x, params["w"])
    statistics = js.collect_statistics(fn, params, [x], plan=plan)
    results = [
        js.SparseGPTSearcher(plan, refine=refine).search(params, statistics).params["w"]
        for refine in (0, 10)
    ]
    for shrinkage in (0.0, 0.1):
        moments = [shrunk(inputs, shrinkage) for inputs in x]
        plain, refined = (
            np.array(
                [oracle.error(*z) for z in zip(params["w"], w, moments, strict=True)]
            )
            for w in results
        )
        assert (refined < plain).all()
        assert np.median(refined / plain) < 0.9


@pytest.mark.sweep
def test_weights_of_inputs_that_are_always_zero_are_left_as_they_are():
    params, x = layer(4, 16, 8)
    x[:, [0, 4, 5, 6, 12, 13, 14, 15]] = 0
    result = js.SparseGPTSearcher(rules("2:4"), refine=5).search(
        params, calibrated(params, x, "2:4")
    )
    weight, mask = np.asarray(result.params["w"]), np.asarray(result.masks["w"])
    assert not mask[0].any()
    for group in (slice(4, 7), slice(12, 16)):
        kept = np.where(mask[group], params["w"][group], 0)
        np.testing.assert_allclose(weight[group], kept, rtol=1e-5)
    # Of four inputs that do not count, those of the largest weights are kept.
    largest = np.sort(abs(params["w"][12:]), 0)[2:]
    np.testing.assert_allclose(np.sort(abs(weight[12:]), 0)[2:], largest, rtol=1e-5)


@pytest.mark.sweep
def test_the_weights_of_the_function_are_improved_not_those_of_the_leaf():
    params, x = layer(5, 16, 8)
    scale = np.random.default_rng(5).exponential(size=(16, 1)).astype(np.float32)
    fn = lambda params, x: x @ (params["w"] * scale)
    statistics = js.collect_statistics(fn, params, [x], plan=rules("2:4"))
    result = js.SparseGPTSearcher(rules("2:4"), refine=5).search(params, statistics)
    whole = {"w": params["w"] * scale}
    expected = js.SparseGPTSearcher(rules("2:4"), refine=5).search(
        whole, calibrated(whole, x, "2:4")
    )
    np.testing.assert_array_equal(result.masks["w"], expected.masks["w"])
    np.testing.assert_allclose(
        result.params["w"] * scale, expected.params["w"], rtol=1e-4, atol=1e-6
    )


@pytest.mark.sweep
def test_packed_masks_are_returned_packed_and_narrow_weights_narrow():
    params, x = layer(6, 16, 8)
    narrow = {"w": jnp.asarray(params["w"], jnp.bfloat16)}
    statistics = calibrated(params, x, "2:4")
    masks = js.create_masks(narrow, rules("2:4"), packed=True)
    with jax.numpy_dtype_promotion("strict"):
        result = js.refine_masks(narrow, masks, statistics, plan=rules("2:4"))
    assert (result.masks["w"].dtype, result.masks["w"].shape) == (jnp.uint8, (2, 8))
    assert result.params["w"].dtype == jnp.bfloat16
    js.check_sparsity(result.params, rules("2:4"))


def test_what_cannot_be_refined_is_refused():
    params, x = layer(7, 16, 8)
    statistics = calibrated(params, x, "8:16")
    many = r"leaf 'w' of shape \(16, 8\) .*8:16 have 12870 masks.* up to 70"
    with pytest.raises(ValueError, match=many + ".*search with refine=0"):
        js.SparseGPTSearcher(rules("8:16"), refine=1).search(params, statistics)
    masks = js.create_masks(params, rules("8:16"))
    with pytest.raises(ValueError, match=many + ".*fit_weights"):
        js.refine_masks(params, masks, statistics, plan=rules("8:16"))
    blocks = rules(js.Block((4, 4), 0.5))
    masks = js.create_masks(params, blocks)
    with pytest.raises(ValueError, match=r"'w'.*blocks.*only n:m, PerOutput and"):
        js.refine_masks(params, masks, statistics, plan=blocks)
    with pytest.raises(ValueError, match=r"mask of leaf 'w' .* more weights of a gr"):
        js.refine_masks(
            params, {"w": np.ones((16, 8), bool)}, statistics, plan=rules("2:4")
        )
    with pytest.raises(ValueError, match=r"leaf 'w' .* but has no mask"):
        js.refine_masks(params, {"w": None}, statistics, plan=rules("2:4"))
    two = {"w": params["w"], "v": params["w"]}
    masks = {"w": js.create_masks(params, rules("2:4"))["w"]} | {
        "v": np.ones((16, 8), bool)
    }
    only = [js.Rule("w", "2:4", axis=0, sizes=None), js.Rule("v", None)]
    with pytest.raises(ValueError, match=r"leaf 'v' .* has a mask, but is planned"):
        js.refine_masks(two, masks, statistics, plan=only)
    for wrong, kind in ((-1, ValueError), (True, TypeError)):
        with pytest.raises(kind, match="refine must be an integer"):
            js.SparseGPTSearcher(refine=wrong)
        with pytest.raises(kind, match="sweeps must be an integer"):
            js.refine_masks(params, {}, statistics, plan="2:4", sweeps=wrong)
