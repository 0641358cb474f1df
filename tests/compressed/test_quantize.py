"""Quantized weights against plain NumPy, and bounds that the formats give."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st

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


@pytest.mark.sweep(keep=["int8"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_tree_is_quantized_where_it_is_compressed(name):
    rng = np.random.default_rng(5)
    params = {
        "up": {"kernel": rng.normal(size=(64, 32)).astype(ml_dtypes.bfloat16)},
        "bias": np.ones(32, np.float32),
    }
    small = js.compress_params(params, quantize=name)
    kernel = small["up"]["kernel"]
    assert kernel.nbytes == 64 * 32 // 2 + 64 * 32 // 8 + 4 * 32
    assert small["bias"] is params["bias"]
    dense = js.mask_params(params, js.create_masks(params))["up"]["kernel"]
    scales = oracle.absmax_scales(dense, name, [0])
    result = js.decompress_params(small)["up"]["kernel"]
    assert result.dtype == jnp.bfloat16
    half = 2.0**-8 * abs(wide(dense))  # rounded to bfloat16 again
    bound = oracle.half_step(wide(dense), scales, name) * (1 + 2.0**-8) + half
    assert (abs(wide(result) - wide(dense)) <= bound).all()


@pytest.mark.sweep
def test_axes_of_a_matmul_share_a_scale_in_a_tree():
    rng = np.random.default_rng(6)
    params = {"out": rng.normal(size=(2, 8, 5)).astype(np.float32)}
    fn = lambda params, x: jnp.einsum("bhk,hko->bo", x, params["out"])
    rules = [js.Rule(".*", "2:4", sizes=None)]
    args = (np.ones((3, 2, 8), np.float32),)
    plan = js.plan_sparsity(params, rules, fn=fn, args=args, dense_head=False)
    small = js.compress_params(params, plan, quantize="int8")
    assert small["out"].scales.shape == (1, 1, 5)


def test_a_format_is_checked_before_the_tree():
    with pytest.raises(ValueError, match=r"to 'int4': give one of \['int8', 'float8"):
        js.compress_params({}, quantize="int4")


def test_a_tree_names_the_leaf_that_cannot_be_quantized():
    plan = [js.Rule(".*", "2:4", axis=0, sizes=None)]
    params = {"a": {"w": jnp.full((8, 4), jnp.nan)}}
    with pytest.raises(ValueError, match=r"leaf 'a/w': .*NaN or infinite"):
        js.compress_params(params, plan, quantize="int8")
    with pytest.raises(TypeError, match=r"leaf 'w': .*int8 cannot be quantized"):
        js.compress_params({"w": jnp.ones((8, 4), "int8")}, plan, quantize="int8")
