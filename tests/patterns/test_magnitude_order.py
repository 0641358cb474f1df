"""The one total order: ties, NaN, infinities, zeros, subnormals, ragged groups."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxsparse as js
from tests import reference


FLOATS = [
    np.float32,
    np.float16,
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
    ml_dtypes.float8_e4m3,
    ml_dtypes.float8_e3m4,
    ml_dtypes.float8_e4m3b11fnuz,
    ml_dtypes.float8_e4m3fnuz,
    ml_dtypes.float8_e5m2fnuz,
]


def name_of(dtype):
    return np.dtype(dtype).name


def kept(row, pattern="2:4"):
    return np.flatnonzero(js.create_asp_mask(jnp.asarray(row), pattern)).tolist()


def test_ties_keep_the_lower_index():
    assert kept([1.0, -1.0, 1.0, 1.0]) == [0, 1]
    assert kept([1.0, 2.0, -2.0, 2.0]) == [1, 2]
    assert kept([0.0, 0.0, 0.0, 3.0]) == [0, 3]
    assert kept(np.zeros(8, np.int8), "3:8") == [0, 1, 2]


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_nan_ranks_above_infinity_above_the_largest(dtype):
    largest = ml_dtypes.finfo(dtype).max
    row = np.array([largest, np.nan, 1.0, -largest]).astype(dtype)
    assert kept(row, "1:4") == [1]
    assert kept(row, "2:4") == [0, 1]
    if dtype in (np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2):
        row = np.array([largest, np.inf, -np.inf, np.nan]).astype(dtype)
        assert kept(row, "1:4") == [3]
        assert kept(row, "2:4") == [1, 3]


@pytest.mark.parametrize(
    ("dtype", "payloads"),
    [
        (np.float32, [0x7F800001, 0xFFC00000, 0x7FFFFFFF, 0xFF800001]),
        (np.float16, [0x7C01, 0xFE00, 0x7FFF, 0xFC01]),
        (ml_dtypes.bfloat16, [0x7F81, 0xFFC0, 0x7FFF, 0xFF81]),
        (ml_dtypes.float8_e5m2, [0x7D, 0xFE, 0x7F, 0xFD]),
        (ml_dtypes.float8_e4m3fn, [0x7F, 0xFF, 0x7F, 0xFF]),
    ],
    ids=lambda x: name_of(x) if not isinstance(x, list) else "",
)
def test_all_nans_are_equal_whatever_their_payload_and_sign(dtype, payloads):
    unsigned = f"uint{8 * np.dtype(dtype).itemsize}"
    row = np.array(payloads, unsigned).view(dtype)
    assert kept(row) == [0, 1]
    assert kept(row[::-1]) == [0, 1]


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_every_pair_of_values_of_a_format_is_ordered(dtype):
    """All pairs of values of an 8-bit format; of wider formats a sample."""
    width = 8 * np.dtype(dtype).itemsize
    bits = np.arange(256) if width == 8 else np.linspace(0, 2**width - 1, 256)
    values = bits.astype(f"uint{width}").view(dtype)
    pair = np.stack([x.ravel() for x in np.meshgrid(values, values)])
    mask = js.create_asp_mask(pair, (1, 2), axis=0)
    magnitude = np.abs(pair.astype(np.float64))
    # NaN above infinity: the largest float64 stands in for infinity.
    order = np.nan_to_num(magnitude, nan=np.inf, posinf=np.finfo(np.float64).max)
    first = order[0] >= order[1]
    np.testing.assert_array_equal(mask, np.stack([first, ~first]))


def test_signed_zeros_tie():
    assert kept([0.0, -0.0, -0.0, 0.0]) == [0, 1]
    assert kept([-0.0, 0.0, 0.0, -0.0]) == [0, 1]


@pytest.mark.parametrize(
    ("dtype", "smallest"),
    [(np.float32, 2.0**-149), (np.float16, 2.0**-24), (ml_dtypes.bfloat16, 2.0**-133)],
)
def test_subnormals_are_distinct(dtype, smallest):
    row = np.array([0.0, 1.0, -3.0, 2.0]).astype(np.float64) * smallest
    assert kept(row.astype(dtype)) == [2, 3]
    assert kept(row.astype(dtype), "3:4") == [1, 2, 3]


def test_float64_keeps_its_own_ordering():
    with jax.enable_x64(True):
        row = np.array([1.0, 1.0 + 2**-52, 1.0 - 2**-53, 1.0 + 2**-51])
        assert kept(row) == [1, 3]
        assert kept(np.array([2.0**-1074, 0.0, -(2.0**-1073), 0.0]), "1:4") == [2]
        assert kept(np.array([np.inf, 1.0, np.nan, 2.0]), "1:4") == [2]
        big = np.array([2**62, -(2**63), 2**62 + 1, 3], np.int64)
        assert kept(big) == [1, 2]


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
def test_the_most_negative_integer_has_the_largest_magnitude(dtype):
    info = np.iinfo(dtype)
    assert kept(np.array([info.max, 0, info.min, -info.max], dtype)) == [0, 2]


def test_integers_without_sign_and_of_four_bits():
    assert kept(np.array([200, 255, 254, 1], np.uint8)) == [1, 2]
    assert kept(np.array([7, -8, 3, -7]).astype(ml_dtypes.int4)) == [0, 1]


def test_small_weights_beside_large_ones_are_ranked_not_summed():
    # In float32, and all the more in bfloat16, 2**25 + 1 and 2**25 + 2 are one number.
    row = np.array([1.0, 2.0**25, 2.0, 0.5], np.float32)
    assert kept(row) == [1, 2]
    weight = np.exp(np.random.default_rng(0).normal(0, 20, (64, 16))).astype(np.float32)
    expected = reference.best_mask_by_sum(weight, 2, 4, 1)
    np.testing.assert_array_equal(js.m4n2_1d(weight), expected)


@pytest.mark.sweep
def test_the_padding_of_a_ragged_group_is_never_kept():
    assert kept([5.0, 1.0, 2.0, 3.0, 0.0]) == [0, 3, 4]
    assert kept([5.0, 1.0, 2.0, 3.0, 0.0, -0.0, 0.0]) == [0, 3, 4, 5]
    assert kept([0.5], "3:4") == [0]
    weight = np.random.default_rng(1).normal(size=(3, 7, 5)).astype(np.float32)
    for axis in range(3):
        for n, m in ((2, 4), (1, 3), (5, 8)):
            mask = js.create_asp_mask(weight, (n, m), axis=axis)
            expected = reference.best_mask_by_rank(weight, n, m, axis)
            np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("shape", [(0,), (0, 8), (4, 0), (2, 0, 3)])
def test_empty_arrays_have_empty_masks(shape):
    for axis in range(-len(shape), len(shape)):
        mask = js.create_asp_mask(np.zeros(shape, np.float32), axis=axis)
        assert mask.shape == shape
        assert mask.dtype == jnp.bool_


@pytest.mark.parametrize("pattern", ["2-4", "banana", "", "4:2", "0:4", "2:65"])
def test_a_bad_pattern_is_refused(pattern):
    with pytest.raises(ValueError, match=r"unknown pattern|1 <= n <= m <= 64"):
        js.create_asp_mask(np.ones(8, np.float32), pattern)


@pytest.mark.parametrize(("m", "n"), [(4, 5), (4, 0), (65, 2), (4, -1)])
def test_bad_numbers_are_refused(m, n):
    for call in (
        lambda: js.mn_1d_best(np.ones((4, 4)), m, n),
        lambda: js.compute_valid_1d_patterns(m, n),
        lambda: js.NM(n, m),
    ):
        with pytest.raises(ValueError, match="1 <= n <= m <= 64"):
            call()


@pytest.mark.parametrize("axis", [2, -3])
def test_an_axis_out_of_range_names_the_shape(axis):
    with pytest.raises(ValueError, match=rf"axis {axis}.*\(4, 8\)"):
        js.create_asp_mask(np.ones((4, 8), np.float32), axis=axis)


def test_arrays_without_a_magnitude_order_are_refused():
    with pytest.raises(ValueError, match="scalar"):
        js.create_asp_mask(np.float32(1.0))
    bad = [
        np.ones(4, np.complex64),
        np.ones(4, bool),
        jax.random.split(jax.random.key(0), 4),
        np.ones(4).astype(ml_dtypes.float8_e8m0fnu),
    ]
    for array in bad:
        with pytest.raises(TypeError, match="no magnitude order"):
            js.create_asp_mask(array)
    with pytest.raises(ValueError, match="takes a matrix"):
        js.reshape_1d(np.ones(4), 2)
    with pytest.raises(ValueError, match="at least one"):
        js.reshape_1d(np.ones((4, 4)), 0)
