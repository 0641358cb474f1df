"""The oracles against masks derived by hand, bit patterns, and each other."""

import ml_dtypes
import numpy as np
import pytest

from tests import reference


FLOATS = [
    np.float64,
    np.float32,
    np.float16,
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
]
INTEGERS = [np.int8, np.int32]
ORACLES = [
    reference.best_mask_by_sum,
    reference.best_mask_by_rank,
    reference.top_n_mask,
]


def name_of(thing):
    return getattr(thing, "__name__", None) or np.dtype(thing).name


def random_bits(dtype, shape, seed):
    """Returns random bit patterns of a format: subnormals, NaN and infinities too."""
    rng = np.random.default_rng(seed)
    unsigned = np.dtype(f"uint{8 * np.dtype(dtype).itemsize}")
    bits = rng.integers(0, 2 ** (8 * unsigned.itemsize), shape, unsigned)
    return bits.view(dtype)


def finite(x):
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return np.where(np.isfinite(x), x, np.zeros_like(x))


def ranks_from_bits(x):
    """Returns ranks by the bits without the sign bit; all NaNs are equal and last."""
    unsigned = np.dtype(f"uint{8 * x.dtype.itemsize}")
    sign = 1 << (8 * x.dtype.itemsize - 1)
    keys = [int(bits) & (sign - 1) for bits in x.view(unsigned)]
    with np.errstate(invalid="ignore"):  # a signalling NaN
        nans = np.isnan(x)
    keys = [sign if nan else key for key, nan in zip(keys, nans, strict=True)]
    return np.unique(np.array(keys, object), return_inverse=True)[1]


@pytest.mark.parametrize("oracle", ORACLES, ids=name_of)
def test_hand_derived_masks(oracle):
    row = np.array([3.0, -4.0, 0.0, 1.0, 2.0, 2.0, -2.0, 2.0, 0.5], np.float32)
    assert np.flatnonzero(oracle(row, 2, 4, 0)).tolist() == [0, 1, 4, 5, 8]
    assert np.flatnonzero(oracle(row, 1, 4, 0)).tolist() == [1, 4, 8]
    assert np.flatnonzero(oracle(row, 3, 4, 0)).tolist() == [0, 1, 3, 4, 5, 6, 8]
    table = np.stack([row, row[::-1]])
    np.testing.assert_array_equal(oracle(table, 2, 4, 1)[0], oracle(row, 2, 4, 0))
    np.testing.assert_array_equal(oracle(table.T, 2, 4, 0), oracle(table, 2, 4, 1).T)
    np.testing.assert_array_equal(oracle(table.T, 2, 4, -2), oracle(table, 2, 4, 1).T)
    assert oracle(np.array([-128, 127, -127, 5], np.int8), 1, 4, 0).tolist() == [
        *(True, False, False, False)
    ]


@pytest.mark.parametrize("oracle", ORACLES, ids=name_of)
@pytest.mark.parametrize("shape", [(0,), (0, 8), (4, 0)])
def test_an_empty_array_has_an_empty_mask(oracle, shape):
    for axis in range(len(shape)):
        mask = oracle(np.zeros(shape, np.float32), 2, 4, axis)
        assert (mask.shape, mask.dtype) == (shape, bool)


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_ranks_are_those_of_the_bit_patterns(dtype):
    if np.dtype(dtype).itemsize == 1:
        x = np.arange(256).astype(np.uint8).view(dtype)
    else:
        x = random_bits(dtype, 400, 0)
    with np.errstate(over="ignore"):
        specials = np.array([0.0, -0.0, np.nan, -np.nan, 1.0, -1.0]).astype(dtype)
    x = np.concatenate([x, specials])
    np.testing.assert_array_equal(reference.dense_ranks(x), ranks_from_bits(x))


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=name_of)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (2, 8), (3, 5)])
def test_the_best_sum_is_the_best_ranks(dtype, n, m):
    x = random_bits(dtype, (3, 2 * m + 1), n * m)
    if dtype not in INTEGERS:
        x = finite(x)
    by_sum = reference.best_mask_by_sum(x, n, m, 1)
    np.testing.assert_array_equal(by_sum, reference.best_mask_by_rank(x, n, m, 1))
    np.testing.assert_array_equal(by_sum, reference.top_n_mask(x, n, m, 1))


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_sorting_is_trying_all_patterns_whatever_the_values(dtype):
    x = random_bits(dtype, (12, 15), 1)
    x[:, ::4] = np.array(np.nan).astype(dtype)
    x[:, 1::4] = x[:, :1]
    for n, m in ((2, 4), (3, 8), (4, 7)):
        np.testing.assert_array_equal(
            reference.top_n_mask(x, n, m, 1), reference.best_mask_by_rank(x, n, m, 1)
        )


def test_counts_of_each_group():
    mask = np.array([[1, 1, 0, 0, 1], [0, 0, 0, 1, 0]], bool)
    assert sorted(reference.n_per_group(mask, 4, 1)) == [0, 1, 1, 2]
    assert sorted(reference.n_per_group(mask, 2, 0)) == [0, 1, 1, 1, 1]


@pytest.mark.parametrize("size", [1, 4, 8, 9, 16, 23])
@pytest.mark.parametrize("axis", [0, 1, -1, -3])
def test_packing_is_numpys_little_endian_packing(size, axis):
    shape = [2, 3, 2]
    shape[axis] = size
    mask = np.random.default_rng(size).random(shape) < 0.5
    packed = reference.pack(mask, axis)
    np.testing.assert_array_equal(packed, np.packbits(mask, axis, bitorder="little"))
    assert packed.dtype == np.uint8
    np.testing.assert_array_equal(reference.unpack(packed, mask.shape, axis), mask)
