"""SparseGPT and least squares against float64 and against what they are to beat."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse._calibration.sparsegpt import inverse_factor, sparsegpt
from tests.calibration import sparsegpt_oracle as oracle


def multiply(params, x):
    return x @ params["w"]


def layer(seed, inputs, outputs, tokens):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(inputs, outputs)).astype(np.float32)
    return {"w": weight}, oracle.correlated(rng, tokens, inputs)


def rules(pattern, axis=0):
    return [js.Rule(".*", pattern, axis=axis, sizes=None)]


def calibrated(params, x, pattern, fn=multiply, axis=0):
    return js.collect_statistics(fn, params, [x], plan=rules(pattern, axis))


def moment_of(x):
    return np.asarray(x, np.float64).T @ x / len(x)


@pytest.mark.sweep(keep=["pattern0-0"])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (4, 8), (2, 3)])
def test_n_of_m_equals_the_sequential_reference(pattern, seed):
    params, x = layer(seed, 24, 9, 200)
    result = js.SparseGPTSearcher(rules(pattern)).search(
        params, calibrated(params, x, pattern)
    )
    n, m = pattern
    weight, mask = oracle.sparsegpt(
        params["w"], oracle.shrunk(moment_of(x)), oracle.keep_highest(n), m
    )
    np.testing.assert_array_equal(result.masks["w"], mask)
    scale = abs(weight).max()
    np.testing.assert_allclose(result.params["w"], weight, atol=1e-5 * scale)
    np.testing.assert_array_equal(np.asarray(result.params["w"]) != 0, mask)
    js.check_sparsity(result.params, rules(pattern))


@pytest.mark.sweep
def test_unstructured_patterns_equal_the_reference_and_keep_their_number():
    params, x = layer(0, 150, 6, 1500)  # two blocks: of 128 inputs and of 22
    moment = oracle.shrunk(moment_of(x))
    # Of 150 weights 45 are kept: 45 * 128 // 150 = 38 of the first block.
    per_output = lambda costs, first: oracle.keep_highest(7 if first else 38)(costs, 0)
    # Of all 900 weights 270 are kept: 270 * 128 // 150 = 230 of the first block.
    whole = lambda costs, first: oracle.keep_highest(40 if first else 230)(
        costs.reshape(-1, 1), 0
    ).reshape(costs.shape)
    for pattern, choose in (
        (js.PerOutput(0.7), per_output),
        (js.Unstructured(0.7), whole),
    ):
        searcher = js.SparseGPTSearcher(rules(pattern))
        result = searcher.search(params, calibrated(params, x, pattern))
        weight, mask = oracle.sparsegpt(params["w"], moment, choose, 128)
        np.testing.assert_array_equal(result.masks["w"], mask)
        scale = abs(weight).max()
        np.testing.assert_allclose(result.params["w"], weight, atol=2e-5 * scale)
        js.check_sparsity(result.params, rules(pattern))


@pytest.mark.sweep
def test_blocks_do_not_change_the_result_for_a_given_mask():
    params, x = layer(1, 150, 8, 1500)  # a block of 128 and one of 22
    mask = np.random.default_rng(2).random((150, 8)) < 0.5
    padded = jnp.asarray(np.pad(mask, ((0, 106), (0, 0))))
    choose = lambda scores, first: jax.lax.dynamic_slice_in_dim(
        padded, first, len(scores)
    )
    moment = moment_of(x)
    factor = inverse_factor(jnp.asarray(moment, jnp.float32), 0.01)
    result, kept = sparsegpt(jnp.asarray(params["w"]), factor, choose, 4)
    expected, _ = oracle.sparsegpt(
        params["w"], moment, lambda costs, i: mask[i : i + len(costs)], 4
    )
    np.testing.assert_array_equal(kept, mask)
    difference = np.linalg.norm(result - expected) / np.linalg.norm(expected)
    assert difference < 1e-4


@pytest.mark.sweep
def test_it_beats_wanda_and_magnitude_on_inputs_that_it_has_not_seen():
    """Fifty layers of 64 inputs, four tokens an input, as one stack."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(50, 64, 32)).astype(np.float32)
    seen, unseen = np.split(
        np.stack([oracle.correlated(rng, 512, 64) for _ in range(50)]), 2, axis=1
    )
    params = {"w": weight}
    fn = lambda params, x: jnp.einsum("lti,lio->lto", x, params["w"])
    statistics = calibrated(params, seen, "2:4", fn, axis=1)
    assert statistics["w"].second_moment.shape == (50, 64, 64)

    def errors(searcher):
        result = np.asarray(searcher.search(params, statistics).params["w"], np.float64)
        lost = np.einsum("lti,lio->lto", unseen, weight - result)
        return np.linalg.norm(lost, axis=(1, 2))

    plan = rules("2:4", axis=1)
    ours = errors(js.SparseGPTSearcher(plan))
    assert np.sum(ours < errors(js.WandaSearcher(plan))) >= 48
    assert np.sum(ours < errors(js.MagnitudeSearcher(plan))) >= 48


def objective(weight, pruned, moment):
    lost = np.asarray(weight, np.float64) - np.asarray(pruned, np.float64)
    return np.sum(lost * (moment @ lost))


def least_squares(weight, mask, x):
    """NumPy's, of each output over the inputs that its mask keeps."""
    x, best = np.asarray(x, np.float64), np.zeros(weight.shape)
    for output, kept in enumerate(mask.T):
        target = x @ weight[:, output]
        best[kept, output] = np.linalg.lstsq(x[:, kept], target, rcond=None)[0]
    return best


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(3))
def test_optimal_weights_are_the_least_squares(seed):
    params, x = layer(seed, 32, 10, 400)
    statistics = calibrated(params, x, "2:4")
    searcher = js.SparseGPTSearcher(
        rules("2:4"), shrinkage=0.0, update_weights="optimal"
    )
    result = searcher.search(params, statistics)
    mask, moment = np.asarray(result.masks["w"]), moment_of(x)
    assert np.array_equal(np.asarray(result.params["w"]) != 0, mask)
    best = objective(params["w"], least_squares(params["w"], mask, x), moment)
    ours = objective(params["w"], result.params["w"], moment)
    assert best * (1 - 1e-9) <= ours <= best * (1 + 1e-4)
    # And for masks from elsewhere, of a pattern that SparseGPT does not search.
    block = js.create_masks(params, rules(js.Block((4, 2), 0.5)))
    fitted = js.fit_weights(params, block, statistics, shrinkage=0.0)
    mask = np.asarray(block["w"])
    best = objective(params["w"], least_squares(params["w"], mask, x), moment)
    ours = objective(params["w"], fitted["w"], moment)
    assert best * (1 - 1e-9) <= ours <= best * (1 + 1e-4)
    packed = js.create_masks(params, rules(js.Block((4, 2), 0.5)), packed=True)
    again = js.fit_weights(params, packed, statistics, shrinkage=0.0)
    np.testing.assert_array_equal(again["w"], fitted["w"])


@pytest.mark.sweep
def test_masks_alone_leave_the_weights_as_they_are():
    params, x = layer(3, 16, 4, 100)
    statistics = calibrated(params, x, "2:4")
    updated = js.SparseGPTSearcher(rules("2:4")).search(params, statistics)
    alone = js.SparseGPTSearcher(rules("2:4"), update_weights=False, packed=True)
    result = alone.search(params, statistics)
    kept = np.asarray(updated.masks["w"])
    np.testing.assert_array_equal(result.params["w"], np.where(kept, params["w"], 0))
    np.testing.assert_array_equal(
        result.masks["w"], np.packbits(kept, axis=0, bitorder="little")
    )


@pytest.mark.sweep
def test_convolutions_are_pruned_along_their_input_channels():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(2, 2, 8, 6)).astype(np.float32)  # two groups
    image = rng.normal(size=(20, 6, 6, 16)).astype(np.float32)

    def fn(params, x):
        return jax.lax.conv_general_dilated(
            x,
            params["w"],
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=2,
        )

    statistics = calibrated({"w": kernel}, image, "2:4", fn, axis=2)
    searcher = js.SparseGPTSearcher(rules("2:4", axis=2))
    result = np.asarray(searcher.search({"w": kernel}, statistics).params["w"])
    for group, channels in enumerate((slice(0, 8), slice(8, 16))):
        windows = np.stack(
            [
                image[:, i : i + 2, j : j + 2, channels].reshape(20, -1)
                for i in range(5)
                for j in range(5)
            ]
        ).reshape(-1, 32)
        outputs = slice(3 * group, 3 * group + 3)
        weight, mask = oracle.sparsegpt(
            kernel[..., outputs].reshape(32, 3),
            oracle.shrunk(moment_of(windows)),
            oracle.keep_highest(2),
            4,
        )
        ours = result[..., outputs].reshape(32, 3)
        np.testing.assert_array_equal(ours != 0, mask)
        np.testing.assert_allclose(ours, weight, atol=1e-5)


@pytest.mark.sweep
def test_inputs_that_are_always_zero_are_pruned_first_and_change_nothing():
    params, x = layer(4, 16, 4, 100)
    x[:, [1, 4, 5, 6, 15]] = 0
    result = js.SparseGPTSearcher(rules("2:4")).search(
        params, calibrated(params, x, "2:4")
    )
    weight, mask = oracle.sparsegpt(
        params["w"], oracle.shrunk(moment_of(x)), oracle.keep_highest(2), 4
    )
    np.testing.assert_array_equal(result.masks["w"], mask)
    np.testing.assert_allclose(result.params["w"], weight, atol=1e-5)
    assert not np.asarray(result.masks["w"])[[1, 15]].any()
    # Of inputs 4 to 6 one is kept, with input 7; its weight was and is of no effect.
    np.testing.assert_array_equal(result.params["w"][4], params["w"][4])


@pytest.mark.sweep
def test_bfloat16_weights_come_back_in_bfloat16():
    params, x = layer(5, 16, 8, 200)
    narrow = {"w": jnp.asarray(params["w"], jnp.bfloat16)}
    wide = {"w": np.asarray(narrow["w"], np.float32)}
    statistics = calibrated(wide, x, "2:4")
    searcher = js.SparseGPTSearcher(rules("2:4"))
    with jax.numpy_dtype_promotion("strict"):
        result = searcher.search(narrow, statistics).params["w"]
    expected = searcher.search(wide, statistics).params["w"]
    assert result.dtype == jnp.bfloat16
    np.testing.assert_array_equal(result, expected.astype(jnp.bfloat16))


def with_moment(params, moment, tokens=100.0):
    """Statistics with a second moment of one's own."""
    real = calibrated(params, np.ones((100, len(params["w"])), np.float32), "2:4")["w"]
    return {
        "w": js.LeafStatistics(
            jnp.asarray(moment, jnp.float32)[None], jnp.array([tokens]), real.columns
        )
    }


def test_a_moment_without_a_factor_takes_more_damping_and_says_so():
    """An eigenvalue is -0.05 of the mean: damping of .01 is too little, .1 enough."""
    rng = np.random.default_rng(6)
    rotation, _ = np.linalg.qr(rng.normal(size=(16, 16)))
    moment = rotation @ np.diag([-0.05] + [1.07] * 15) @ rotation.T
    params, _ = layer(6, 16, 8, 1)
    statistics = with_moment(params, moment)
    searcher = js.SparseGPTSearcher(rules("2:4"), shrinkage=0.0)
    with pytest.warns(UserWarning, match=r"of 1 of 1 leaves .* leaf 'w' took 0.1$"):
        result = searcher.search(params, statistics)
    weight, mask = oracle.sparsegpt(
        params["w"], moment, oracle.keep_highest(2), 4, damping=0.1
    )
    np.testing.assert_array_equal(result.masks["w"], mask)
    np.testing.assert_allclose(result.params["w"], weight, rtol=1e-4, atol=1e-5)
    first = np.outer(rotation[:, 0], rotation[:, 0])
    hopeless = with_moment(params, moment - 1e6 * first)
    no_factor = r"leaf 'w' of shape \(16, 8\) has no Cholesky"
    with pytest.raises(ValueError, match=no_factor):
        searcher.search(params, hopeless)


def test_fewer_tokens_than_inputs_are_warned_of_with_both_numbers():
    params, x = layer(7, 16, 8, 5)
    statistics = calibrated(params, x, "2:4")
    few = r"leaf 'w' has 5 tokens for 16 inputs.*four times as many"
    with pytest.warns(UserWarning, match=few):
        result = js.SparseGPTSearcher(rules("2:4")).search(params, statistics)
    assert np.isfinite(np.asarray(result.params["w"])).all()
    with pytest.warns(UserWarning, match=few):
        fitted = js.fit_weights(params, result.masks, statistics)
    assert np.isfinite(np.asarray(fitted["w"])).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Wanda fits nothing
        js.WandaSearcher(rules("2:4")).search(params, statistics)


def test_outputs_that_are_not_those_of_the_statistics_are_refused():
    params, x = {"w": np.ones((3, 16, 8), np.float32)}, np.ones((99, 3, 16), np.float32)
    fn = lambda params, x: jnp.einsum("tsi,sio->to", x, params["w"])
    plan = rules(js.PerOutput(0.5), axis=1)  # to the rule axis 0 has outputs
    statistics = js.collect_statistics(fn, params, [x], plan=plan)
    with pytest.raises(ValueError, match=r"axes \[2\] by its stat.* along \[0, 2"):
        js.SparseGPTSearcher(plan).search(params, statistics)
