"""Quantized weights against plain NumPy, and bounds that the formats give."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from jax import lax

import jaxsparse as js
from jaxsparse._compressed.eight_bits import absmax_scales, round_to_eight_bits
from tests.compressed import quantization_oracle as oracle
from tests.compressed.layout_oracle import as_compressed, masked, random_mask
from tests.thorough import thorough


FORMATS = ["int8", "float8_e4m3fn"]


def wide(x):
    return np.asarray(x).astype(np.float64)


def weight(rng, shape, axis=0, pattern=(2, 4), dtype=np.float32):
    """Returns a masked weight, whose outputs differ in size, and it compressed."""
    w = rng.normal(size=shape) * np.exp2(rng.integers(-9, 9, shape[-1:]))
    mask = random_mask(rng, shape, *pattern, axis)
    w = w.astype(dtype)
    return masked(w, mask), as_compressed(w, mask, *pattern, axis)


@pytest.mark.parametrize("name", FORMATS)
def test_every_number_tie_and_neighbour_is_rounded_to_nearest_even(name):
    numbers = np.arange(128.0) if name == "int8" else oracle.E4M3
    ties = (numbers[1:] + numbers[:-1]) / 2
    near = np.concatenate([numbers, ties, ties * (1 + 2.0**-20), ties * (1 - 2.0**-20)])
    x = np.float32(np.concatenate([near, -near, [600, -1e30]]))
    got = jax.jit(lambda x: round_to_eight_bits(x, jnp.ones(1), jnp.dtype(name)))(x)
    np.testing.assert_array_equal(wide(got), oracle.rounded(x, name))


@pytest.mark.sweep(keep=["int8"])
@pytest.mark.parametrize("name", FORMATS)
def test_scales_are_divided_not_multiplied_by_a_reciprocal(name):
    x = np.random.default_rng(0).normal(size=(999, 4)).astype(np.float32)
    got = jax.jit(lambda x: absmax_scales(x, name, [1]))(x)
    np.testing.assert_array_equal(wide(got), oracle.absmax_scales(x, name, [1]))


@pytest.mark.sweep(keep=["pattern0"])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("pattern", [(2, 4), (3, 16)])
def test_weights_are_within_half_a_step(name, pattern):
    dense, stored = weight(np.random.default_rng(0), (64, 8), pattern=pattern)
    small = js.quantize_compressed(stored, name)
    assert (small.values.dtype, small.scales.dtype) == (name, "float32")
    assert (small.scales.shape, small.dtype, small.shape) == (
        (1, 8),
        "float32",
        (64, 8),
    )
    scales = oracle.absmax_scales(dense, name, [0])
    np.testing.assert_array_equal(wide(small.scales), scales)
    result = wide(js.decompress(small))
    exact = np.float32(oracle.quantized(dense, scales, name) * scales)
    np.testing.assert_array_equal(result, exact)
    assert (abs(result - dense) <= oracle.half_step(dense, scales, name)).all()
    assert (result[dense == 0] == 0).all()
    assert not np.signbit(result[dense == 0]).any()


@pytest.mark.sweep(keep=["int8"])
@pytest.mark.parametrize("name", FORMATS)
def test_multiples_of_their_scale_come_back_exactly(name):
    rng = np.random.default_rng(1)
    numbers = np.arange(128.0) if name == "int8" else oracle.E4M3
    codes = rng.choice(numbers, (32, 6)) * rng.choice([-1, 1], (32, 6))
    codes[::4] = numbers[-1]  # kept in every group
    exact = codes * [1, 3, 0.5, 2.0**-30, 5 * 2.0**60, 7]
    mask = np.tile(np.array([1, 0, 1, 0], bool)[:, None], (8, 6))
    stored = as_compressed(exact.astype(np.float32), mask, 2, 4, 0)
    small = js.quantize_compressed(stored, name)
    np.testing.assert_array_equal(js.decompress(small), np.where(mask, exact, 0))


def test_a_leading_axis_of_shared_scales_is_mapped_over_once_they_are_repeated():
    dense, stored = weight(np.random.default_rng(7), (3, 8, 5), axis=1)
    small = js.quantize_compressed(stored, contracted=(0, 1))
    scales = jnp.broadcast_to(small.scales, (len(small.values), 1, 5))
    repeated = replace(small, scales=scales)
    for mapped in (jax.vmap(js.decompress), partial(lax.map, js.decompress)):
        np.testing.assert_array_equal(mapped(repeated), js.decompress(small))
    bound = oracle.half_step(dense, wide(small.scales), "int8")
    assert (abs(wide(js.decompress(small)) - dense) <= bound).all()


def squared_errors(small, dense, axes):
    return ((wide(js.decompress(small)) - dense) ** 2).sum(axes)


@pytest.mark.sweep
@thorough(20)
@given(st.sampled_from(FORMATS), st.sampled_from([None, 8]), st.integers(0, 2**32))
def test_mse_scales_have_no_larger_error_and_the_least_of_all_tried(name, size, seed):
    rng = np.random.default_rng(seed)
    dense, stored = weight(rng, (16, 4))
    best = js.quantize_compressed(stored, name, group_size=size, scales="mse")
    ranges = wide(dense).reshape(-1, size or 16, 4)
    largest = oracle.absmax_scales(ranges, name, [1])

    def errors(scales):
        return ((oracle.quantized(ranges, scales, name) * scales - ranges) ** 2).sum(1)

    tried = [errors(largest * shrinkage) for shrinkage in np.linspace(1, 0.7, 31)]
    found = ((wide(js.decompress(best)).reshape(ranges.shape) - ranges) ** 2).sum(1)
    # A rounding of float32 in each of 16 weights, of at most the largest magnitude.
    slack = 16 * 2.0**-22 * (ranges**2).max(1)
    assert (found <= np.min(tried, 0) + slack).all()
    assert (found <= tried[0] + slack).all()


@pytest.mark.sweep
@pytest.mark.parametrize("name", FORMATS)
def test_scales_for_groups_of_inputs(name):
    dense, stored = weight(np.random.default_rng(2), (48, 4))
    dense[16:32] *= 100
    stored = js.compress(dense, "2:4")
    small = js.quantize_compressed(stored, name, group_size=16)
    groups = dense.reshape(3, 16, 4)
    scales = oracle.absmax_scales(groups, name, [1])
    np.testing.assert_array_equal(wide(small.scales), scales[:, 0])
    result = wide(js.decompress(small)).reshape(groups.shape)
    assert (abs(result - groups) <= oracle.half_step(groups, scales, name)).all()


@pytest.mark.sweep(whole=True)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_any_group_axis_and_axes_that_share_scales(axis):
    dense, stored = weight(np.random.default_rng(3), (8, 12, 16), axis)
    for contracted in ((), (axis,), (0, axis), (-1,)):
        small = js.quantize_compressed(stored, contracted=contracted)
        axes = {axis, *(i % 3 for i in contracted)}
        scales = oracle.absmax_scales(dense, "int8", sorted(axes))
        np.testing.assert_array_equal(wide(small.scales), scales)
        result = wide(js.decompress(small))
        assert (abs(result - dense) <= oracle.half_step(dense, scales, "int8")).all()


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_weights_keep_their_dtype_and_are_rounded_once(dtype):
    rng = np.random.default_rng(4)
    dense, _ = weight(rng, (16, 4))
    dense = np.clip(dense, -99, 99).astype(dtype)
    small = js.quantize_compressed(js.compress(dense), "int8")
    assert small.dtype == js.decompress(small).dtype == dtype
    scales = oracle.absmax_scales(dense, "int8", [0])
    exact = np.float32(oracle.quantized(dense, scales, "int8") * scales)
    np.testing.assert_array_equal(js.decompress(small), exact.astype(dtype))


@pytest.mark.sweep
def test_outputs_of_zeros_and_of_subnormal_weights():
    tiny = np.float32(2.0**-140)
    w = np.array([[0, tiny, 2.0**-126], [0, -tiny, 2.0**-126]], np.float32)
    w = np.pad(w, [(0, 2), (0, 0)])
    small = js.quantize_compressed(js.compress(w, axis=0))
    assert small.scales[0, 0] == 1
    result = wide(js.decompress(small))
    assert (result[:, 0] == 0).all()
    assert (abs(result - w) <= 2.0**-126).all()
    assert np.isfinite(result).all()


def ends(*column):
    """Returns a compressed weight with a column of two values, and one of zeros."""
    w = np.zeros((4, 2), np.float32)
    w[:2, 0] = column
    return js.compress(w, axis=0)


@pytest.mark.parametrize("scales", ["absmax", "mse"])
@pytest.mark.parametrize(
    ("name", "result"),
    # The largest float32 is 16777215 * 2**104. By 127 that is 132104.0551, and numbers
    # of that size are 1/64 apart: 132104 and 3/64 times 127 is 16777213.95, which is
    # rounded to the next whole number; with 4/64 it is 16777215.94, which is rounded to
    # infinity. By 448 it is 37449 and 36/256, which is a float32.
    [("int8", 16777214 * 2.0**104), ("float8_e4m3fn", 16777215 * 2.0**104)],
)
def test_the_largest_weight_stays_finite(name, result, scales):
    largest = np.finfo(np.float32).max
    small = js.quantize_compressed(ends(largest, -largest), name, scales=scales)
    if scales == "absmax":
        np.testing.assert_array_equal(
            wide(js.decompress(small))[:2, 0], [result, -result]
        )
    assert np.isfinite(js.decompress(small)).all()
    assert (small.scales[0, 1], abs(wide(small.values[:, 1])).max()) == (1, 0)


@pytest.mark.parametrize("scales", ["absmax", "mse"])
@pytest.mark.parametrize("name", FORMATS)
def test_no_scale_is_subnormal(name, scales):
    # 2**-120 / 127 is below the smallest normal number, 2**-126: 64 times that instead.
    stored = ends(2.0**-120, -(2.0**-121))
    small = js.quantize_compressed(stored, name, scales=scales)
    assert small.scales[0, 0] == 2.0**-126
    np.testing.assert_array_equal(wide(small.values[:, 0]), [64, -32])
    np.testing.assert_array_equal(js.decompress(small), js.decompress(stored))


@pytest.mark.sweep
def test_traced_infinite_weights_make_their_output_nan():
    w = np.ones((8, 3), np.float32)
    w[0, 1], w[4, 2] = np.inf, np.nan
    stored = js.compress(w, axis=0)
    result = jax.jit(lambda w: js.decompress(js.quantize_compressed(w)))(stored)
    np.testing.assert_array_equal(np.isnan(result).any(0), [False, True, True])


def quantized(**options):
    return js.quantize_compressed(js.compress(np.ones((8, 4), np.float32)), **options)


SHAPES = jax.eval_shape(js.compress, jax.ShapeDtypeStruct((8, 4), "float32"))


@pytest.mark.usefixtures("without_annotations")
@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (ValueError, "int8 already", lambda: js.quantize_compressed(quantized())),
        (ValueError, "to 'int4': give", lambda: quantized(dtype="int4")),
        (ValueError, "to 'eight': give", lambda: quantized(dtype="eight")),
        (TypeError, r"\(8, 4\) has no values", lambda: js.quantize_compressed(SHAPES)),
        (ValueError, "'best'", lambda: quantized(scales="best")),
        (
            ValueError,
            "groups of 6: give a multiple of 4",
            lambda: quantized(group_size=6),
        ),
        (ValueError, "groups of 0", lambda: quantized(group_size=0)),
        (ValueError, r"\(2,\) are out of range", lambda: quantized(contracted=(2,))),
        (
            TypeError,
            "int32 cannot be quantized",
            lambda: js.quantize_compressed(js.compress(np.ones((8, 4), np.int32))),
        ),
        (
            ValueError,
            r"\(8, 4\) has 4 NaN or infinite",
            lambda: js.quantize_compressed(
                js.compress(np.tile([1, 2, 3, np.nan], (8, 1)).astype(np.float32))
            ),
        ),
    ],
)
def test_errors(error, words, call):
    with pytest.raises(error, match=words):
        call()


def test_weights_beyond_float32_have_no_scale():
    with jax.enable_x64(True):
        stored = js.compress(np.array([1e300, 2.0, 0.0, 0.0]))
        with pytest.raises(ValueError, match="1 NaN or infinite values in float32"):
            js.quantize_compressed(stored)
