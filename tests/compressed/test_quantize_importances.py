"""Scales weighted by calibration data, against searches in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

import jaxsparse as js
from tests.compressed import quantization_oracle as oracle
from tests.compressed.layout_oracle import as_compressed, masked, random_mask
from tests.thorough import thorough


FORMATS = ["int8", "float8_e4m3fn"]
SHRINKAGES = np.linspace(1, 0.7, 31)


def problem(rng, shape, pattern=(2, 4), axis=0):
    """Returns a masked weight, it compressed, and importances of a wide range."""
    w = rng.normal(size=shape).astype(np.float32)
    mask = random_mask(rng, shape, *pattern, axis)
    importances = np.exp2(rng.integers(-12, 12, shape)).astype(np.float32)
    return masked(w, mask), as_compressed(w, mask, *pattern, axis), importances


def wide(x):
    return np.asarray(x).astype(np.float64)


def errors_of_all_scales(dense, importances, name, axes):
    """Returns the weighted squared errors of ranges, of each scale that is tried."""
    largest = oracle.absmax_scales(dense, name, axes)
    return [
        (
            importances
            * (oracle.quantized(dense, largest * part, name) * (largest * part) - dense)
            ** 2
        ).sum(tuple(axes))
        for part in SHRINKAGES
    ]


@pytest.mark.sweep(keep=["int8"])
@pytest.mark.parametrize("name", FORMATS)
@thorough(10)
@given(st.sampled_from([None, 8, 16]), st.integers(0, 2**32))
def test_the_error_is_the_least_of_all_scales_that_are_tried(name, size, seed):
    dense, stored, importances = problem(np.random.default_rng(seed), (32, 4))
    small = js.quantize_compressed(
        stored, name, group_size=size, importances=importances
    )
    split = lambda x: wide(x).reshape(-1, size or 32, 4)
    tried = errors_of_all_scales(split(dense), split(importances), name, [1])
    found = (split(importances) * split(wide(js.decompress(small)) - dense) ** 2).sum(1)
    # A rounding of float32 in each of 32 weights, of at most the largest magnitude.
    highest = split(importances).max(1) * (split(dense) ** 2).max(1)
    assert (found <= np.min(tried, 0) + 32 * 2.0**-22 * highest).all()


@pytest.mark.sweep
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axes_that_share_a_scale(axis):
    rng = np.random.default_rng(axis)
    dense, stored, importances = problem(rng, (8, 12, 16), axis=axis)
    axes = sorted({0, axis})
    small = js.quantize_compressed(stored, contracted=(0,), importances=importances)
    tried = errors_of_all_scales(wide(dense), importances, "int8", axes)
    found = (importances * (wide(js.decompress(small)) - dense) ** 2).sum(tuple(axes))
    highest = importances.max(tuple(axes)) * (dense**2).max(tuple(axes))
    assert (found <= np.min(tried, 0) + 192 * 2.0**-22 * highest).all()


def test_only_ratios_and_kept_weights_matter():
    rng = np.random.default_rng(1)
    dense, stored, importances = problem(rng, (64, 6), (4, 8))
    scales = js.quantize_compressed(stored, importances=importances).scales
    times = importances * np.float32([2.0**60, 2.0**-60, 1, 4, 16, 2.0**-20])
    times[dense == 0] = 1e30  # pruned
    times[dense == 0] *= rng.integers(0, 2, times[dense == 0].shape)
    for x in (times * (dense != 0), importances * (dense != 0)):
        again = js.quantize_compressed(stored, importances=x).scales
        np.testing.assert_array_equal(again, scales)
    alike = js.quantize_compressed(stored, scales="mse").scales
    for x in (np.zeros_like(dense), np.full_like(dense, 3)):
        again = js.quantize_compressed(stored, importances=x).scales
        np.testing.assert_array_equal(again, alike)


def test_the_output_error_on_calibration_data_is_the_least():
    """Inputs without correlation: the weighted error is that of the outputs."""
    rng = np.random.default_rng(2)
    w = rng.standard_t(3, (64, 8)).astype(np.float32)
    x = np.diag(np.exp2(rng.integers(-6, 6, 64))).astype(np.float32)
    plan = [js.Rule(".*", "2:4", axis=0, sizes=None)]
    fn = lambda params, x: x @ params["w"]
    params = {"w": w, "bias": np.ones(3, np.float32)}
    statistics = js.collect_statistics(fn, params, [x], plan=plan)
    importances = js.input_importances(params, statistics)
    assert importances["bias"] is None
    kept = js.decompress(js.compress(w, axis=0))
    small = js.compress_params(params, plan, quantize="int8", importances=importances)
    exact = wide(x) @ wide(kept)
    error = ((wide(x) @ wide(js.decompress(small["w"])) - exact) ** 2).sum(0)
    largest = oracle.absmax_scales(kept, "int8", [0])
    tried = [
        (
            (wide(x) @ (oracle.quantized(kept, scales, "int8") * scales) - exact) ** 2
        ).sum(0)
        for scales in (largest * part for part in SHRINKAGES)
    ]
    np.testing.assert_allclose(error, np.min(tried, 0), rtol=1e-4)
    assert (error < tried[0]).any()  # than by the largest magnitudes


def test_importances_are_mean_squares_of_what_weights_are_multiplied_by():
    rng = np.random.default_rng(3)
    params = {
        "out": rng.normal(size=(2, 8, 5)).astype(np.float32),
        "scaled": rng.normal(size=(5, 3)).astype(np.float32),
    }
    factors = np.float32([[1], [2], [0], [-1], [0.5]])

    def fn(params, x):
        y = jnp.einsum("bhk,hko->bo", x, params["out"])
        return y @ (params["scaled"] * factors)

    x = rng.normal(size=(40, 2, 8)).astype(np.float32)
    plan = [js.Rule("out", "2:4", sizes=None), js.Rule("scaled", None)]
    plan = js.plan_sparsity(params, plan, fn=fn, args=(x,), dense_head=False)
    statistics = js.collect_statistics(fn, params, [x], plan=plan)
    got = js.input_importances(params, statistics)
    wanted = np.broadcast_to((wide(x) ** 2).mean(0)[:, :, None], (2, 8, 5))
    np.testing.assert_allclose(got["out"], wanted, rtol=1e-5)
    plan = [js.Rule("scaled", js.Unstructured(0.5), sizes=None), js.Rule("out", None)]
    plan = js.plan_sparsity(params, plan, fn=fn, args=(x,), dense_head=False)
    got = js.input_importances(
        params, js.collect_statistics(fn, params, [x], plan=plan)
    )
    y = np.einsum("bhk,hko->bo", wide(x), wide(params["out"]))
    wanted = np.broadcast_to((y**2).mean(0)[:, None] * wide(factors) ** 2, (5, 3))
    np.testing.assert_allclose(got["scaled"], wanted, rtol=1e-4)


STORED = js.compress(np.ones((8, 4), np.float32))
PARAMS = {"w": np.ones((8, 4), np.float32)}


def of_tree(importances, **options):
    plan = [js.Rule(".*", "2:4", axis=0, sizes=None)]
    return js.compress_params(PARAMS, plan, importances=importances, **options)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (
            r"\(8, 3\) do not fit a weight of shape \(8, 4\)",
            lambda: js.quantize_compressed(STORED, importances=np.ones((8, 3))),
        ),
        (
            r"\(8, 4\) do not change scales 'absmax'",
            lambda: js.quantize_compressed(
                STORED, scales="absmax", importances=np.ones((8, 4))
            ),
        ),
        (
            "negative or not finite",
            lambda: js.quantize_compressed(STORED, importances=-np.ones((8, 4))),
        ),
        (
            "negative or not finite",
            lambda: js.quantize_compressed(STORED, importances=np.full((8, 4), np.inf)),
        ),
        (r"\['w'\] are for scales of eight bits", lambda: of_tree(PARAMS)),
        (r"of \['v'\], but", lambda: of_tree({"v": 1.0}, quantize="int8")),
        (
            r"leaf 'w': importances of shape \(\)",
            lambda: of_tree({"w": 1.0}, quantize="int8"),
        ),
    ],
)
def test_errors(words, call):
    with pytest.raises(ValueError, match=words):
        call()


def test_importances_may_be_traced():
    _, stored, importances = problem(np.random.default_rng(4), (16, 4))
    quantize = lambda x: js.quantize_compressed(stored, importances=x).scales
    np.testing.assert_array_equal(jax.jit(quantize)(importances), quantize(importances))
