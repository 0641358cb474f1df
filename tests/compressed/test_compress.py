"""Compressed weights, bit for bit, against a NumPy implementation of the layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from tests import reference
from tests.compressed.layout_oracle import (
    DTYPES,
    as_compressed,
    assert_same_bits,
    compressed,
    masked,
    random_mask,
    random_weight,
)


def test_the_layout_of_2_4_by_hand():
    w = np.array([[1, 0, 0, 4], [0, 2, 3, 0]], np.float32)
    result = js.compress(w, "2:4", axis=1)
    np.testing.assert_array_equal(result.values, [[1, 4], [2, 3]])
    np.testing.assert_array_equal(result.indices, [[0b11_00], [0b10_01]])
    flat = js.compress(w.reshape(-1), "2:4")  # eight weights to a byte
    np.testing.assert_array_equal(flat.indices, [0b10_01_11_00])


def test_the_layouts_of_wider_groups_by_hand():
    w = np.zeros((16, 1), np.int8)
    w[[2, 3, 5, 7, 8, 9, 10, 15], 0] = [1, 2, 3, 4, 5, 6, 7, 8]
    result = js.compress(w, "4:8")
    np.testing.assert_array_equal(result.values[:, 0], [1, 2, 3, 4, 5, 6, 7, 8])
    assert result.indices[:, 0].tolist() == [0b1010_1100, 0b1000_0111]
    w[[2, 3, 8, 9]] = 0
    result = js.compress(w, "2:8")
    np.testing.assert_array_equal(result.values[:, 0], [3, 4, 7, 8])
    assert result.indices[:, 0].tolist() == [0x75, 0x72]
    w[7] = 0
    result = js.compress(w, "3:16")
    assert result.indices[:, 0].tolist() == [0xA5, 0x0F]


PATTERNS = [(1, 4), (2, 4), (3, 4), (4, 4), (1, 8), (2, 8), (4, 8), (3, 16), (8, 16)]


@pytest.mark.sweep(keep=["pattern1"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_masks_that_keep_n_or_fewer(pattern):
    n, m = pattern
    rng = np.random.default_rng(0)
    weight = random_weight(rng, (3 * m, 5), np.float32)
    for fewer in (False, True):
        mask = random_mask(rng, weight.shape, n, m, 0, fewer)
        result = js.compress(weight, pattern, mask=mask)
        values, indices = compressed(weight, mask, n, m, 0)
        assert_same_bits(result.values, values)
        assert_same_bits(result.indices, indices)
        assert_same_bits(js.decompress(result), masked(weight, mask))
        assert (result.shape, result.dtype, result.ndim) == (
            weight.shape,
            np.float32,
            2,
        )
        assert result.nbytes == values.nbytes + indices.nbytes


AXES = [
    (shape, i)
    for shape in [(16,), (8, 16), (4, 8, 12), (8, 4, 4, 12)]
    for i in range(len(shape))
]


@pytest.mark.sweep(keep=["shape1-", "shape3-", "shape9-"])
@pytest.mark.parametrize(
    ("shape", "axis", "dtype"),
    [(shape, axis, DTYPES[i % len(DTYPES)]) for i, (shape, axis) in enumerate(AXES)],
)
def test_every_axis_of_every_rank_and_every_dtype(shape, axis, dtype):
    rng = np.random.default_rng(1)
    weight = random_weight(rng, shape, dtype)
    weight.flat[:3] = np.array([0.0, -0.0, 1]).astype(dtype)
    mask = random_mask(rng, shape, 2, 4, axis)
    result = js.compress(weight, "2:4", mask=mask, axis=axis - len(shape))
    expected = as_compressed(weight, mask, 2, 4, axis)
    assert_same_bits(result.values, expected.values)
    assert_same_bits(result.indices, expected.indices)
    assert (result.axis, result.shape) == (expected.axis, shape)
    assert_same_bits(js.decompress(result), masked(weight, mask))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e5m2", "int8"])
def test_every_bit_pattern_is_preserved_as_by_mask_params(dtype):
    size = jnp.dtype(dtype).itemsize
    weight = np.arange(256**size, dtype=f"uint{8 * size}").view(jnp.dtype(dtype))
    weight = jnp.asarray(weight.reshape(-1, 16))
    for positions in ([1, 0, 1, 0], [0, 1, 0, 1]):
        mask = np.tile(np.array(positions, bool), (weight.shape[0], 4))
        result = js.decompress(js.compress(weight, mask=mask, axis=1))
        assert_same_bits(result, js.mask_params(weight, mask))
        if dtype in ("float16", "int8"):  # a CPU preserves signalling NaNs of these
            assert_same_bits(result, masked(np.asarray(weight), mask))


def test_nan_infinity_subnormals_and_signed_zeros_of_float32():
    special = [0x7FC01234, 0xFF800000, 0x00000001, 0x80000000, 0x7F812345, 0x80000001]
    weight = np.array(special * 2, np.uint32).view(np.float32).reshape(12, 1)
    for positions in ([1, 1, 0, 0], [0, 0, 1, 1]):
        mask = np.tile(np.array(positions, bool), 3)[:, None]
        result = js.decompress(js.compress(weight, mask=mask))
        assert_same_bits(result, masked(weight, mask))


def test_without_a_mask_the_largest_magnitudes_are_kept():
    weight = random_weight(np.random.default_rng(2), (32, 6), np.float32)
    expected = masked(weight, reference.best_mask_by_rank(weight, 4, 8, 0))
    result = js.compress(weight, (4, 8))
    assert_same_bits(js.decompress(result), expected)
    again = js.compress(expected, js.NM(4, 8))
    np.testing.assert_array_equal(again.values, result.values)


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 9 / 16), ("int8", 10 / 16)])
@pytest.mark.parametrize("pattern", ["2:4", "4:8", "8:16"])
def test_half_density_takes_half_the_bytes_and_one_bit_per_weight(
    pattern, dtype, share
):
    weight = jax.ShapeDtypeStruct((64, 24), dtype)
    result = jax.eval_shape(lambda w: js.compress(w, pattern), weight)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(result))
    assert size == share * weight.size * weight.dtype.itemsize


def test_packed_masks_are_accepted():
    rng = np.random.default_rng(3)
    weight = random_weight(rng, (8, 16), np.float32)
    mask = random_mask(rng, weight.shape, 2, 4, 0)
    for axis in (0, 1):
        packed = reference.pack(mask, axis)
        result = js.compress(weight, mask=packed, axis=0)
        assert_same_bits(js.decompress(result), masked(weight, mask))


def test_transforms():
    rng = np.random.default_rng(4)
    weight = random_weight(rng, (3, 8, 6), np.float32)
    mask = random_mask(rng, weight.shape, 2, 4, 1)
    expected = masked(weight, mask)
    pack = lambda w, mask: js.compress(w, mask=mask)
    with jax.numpy_dtype_promotion("strict"):
        stacked = jax.jit(jax.vmap(pack))(jnp.asarray(weight), jnp.asarray(mask))
        assert (stacked.shape, stacked.axis) == ((3, 8, 6), -2)
        assert_same_bits(js.decompress(stacked), expected)
        assert_same_bits(jax.vmap(js.decompress)(stacked), expected)
        _, scanned = jax.lax.scan(lambda _, c: (None, js.decompress(c)), None, stacked)
        assert_same_bits(scanned, expected)
        compress_jitted = jax.jit(
            lambda w: js.decompress(js.compress(w, mask=mask, axis=1))
        )
        assert_same_bits(compress_jitted(weight), expected)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_empty_weights(shape):
    for mask in (None, np.zeros(shape, bool)):
        result = js.compress(np.ones(shape, np.float32), mask=mask)
        assert (result.shape, result.nbytes) == (shape, 0)
        assert js.decompress(result).shape == shape


def test_gradients_are_gathered_and_scattered():
    rng = np.random.default_rng(5)
    weight = random_weight(rng, (8, 6), np.float32)
    mask = random_mask(rng, weight.shape, 2, 4, 0)
    slope = random_weight(rng, weight.shape, np.float32)
    stored = as_compressed(weight, mask, 2, 4, 0)
    loss = lambda c: jnp.sum(slope * js.decompress(c))
    gradient = jax.grad(loss, allow_int=True)(jax.tree.map(jnp.asarray, stored))
    np.testing.assert_array_equal(gradient.values, compressed(slope, mask, 2, 4, 0)[0])
    through = lambda w: jnp.sum(slope * js.decompress(js.compress(w, mask=mask)))
    gradient = jax.grad(through)(jnp.asarray(weight))
    np.testing.assert_array_equal(gradient, masked(slope, mask))


def test_a_traced_mask_that_keeps_too_many_keeps_the_first():
    weight = jnp.arange(1.0, 9.0)
    keep = jax.jit(lambda mask: js.decompress(js.compress(weight, mask=mask)))
    np.testing.assert_array_equal(keep(jnp.ones(8, bool)), [1, 2, 0, 0, 5, 6, 0, 0])


@pytest.mark.parametrize(
    ("shape", "pattern", "mask", "axis", "error", "words"),
    [
        ((6, 8), "2:4", None, 0, ValueError, r"axis 0 .*\(6, 8\) .*4 of 2:4: pad"),
        ((8, 8), "2:4", None, 2, ValueError, r"axis 2 .*\(8, 8\)"),
        ((), "2:4", None, None, ValueError, "a scalar"),
        ((8, 8), "1:2", None, 0, ValueError, r"1:2 .*\(8, 8\).* 4, 8 or 16"),
        ((8, 8), js.Unstructured(0.5), None, 0, ValueError, "50% unstructured"),
        ((8, 8), js.NM(2, 4, transposable=True), None, 0, TypeError, "create_masks"),
        (
            (8, 8),
            "2:4",
            np.ones((8, 8), bool),
            0,
            ValueError,
            "keeps 4 of a group of 4",
        ),
        ((8, 8), "2:4", np.ones((8, 4), bool), 0, ValueError, r"\(8, 4\)"),
        ((8, 8), "2:4", np.ones((8, 8), np.uint8), 0, ValueError, "packed"),
        ((8, 8), "2:4", np.ones((8, 8), np.float32), 0, TypeError, "float32"),
    ],
)
def test_errors(shape, pattern, mask, axis, error, words):
    weight = np.ones(shape, np.float32)
    with pytest.raises(error, match=words):
        js.compress(weight, pattern, mask=mask, axis=axis)
    with pytest.raises(error, match=words):  # a concrete mask is checked under jit too
        jax.jit(lambda w: js.compress(w, pattern, mask=mask, axis=axis))(weight)
