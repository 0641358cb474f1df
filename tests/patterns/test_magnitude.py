"""ASP's vocabulary for arrays, against brute force over all patterns."""

import itertools
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st

import jaxsparse as js
from tests import reference
from tests.thorough import thorough


DTYPES = [
    np.float32,
    ml_dtypes.bfloat16,
    np.float16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
    np.int8,
]
PATTERNS = [(2, 4), (1, 4), (3, 4), (4, 8), (2, 8), (8, 16)]


def tie_free(shape, m, axis, dtype, seed=0):
    """Returns weights whose magnitudes differ within each group of `m` along `axis`."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype) == np.int8:
        distinct = np.arange(128, dtype=np.int8)
    else:  # the positive normal numbers that both float8 formats have
        distinct = np.arange(0x24, 0x5F, dtype=np.uint8).view(ml_dtypes.float8_e5m2)
        distinct = distinct.astype(np.float32).astype(dtype)
    magnitudes = np.moveaxis(np.zeros(shape, dtype), axis, -1)
    for line in magnitudes.reshape(-1, shape[axis]):
        for start in range(0, shape[axis], m):
            size = min(m, shape[axis] - start)
            drawn = rng.choice(distinct, size, replace=False)
            line[start : start + size] = drawn
    sign = rng.choice(np.array([-1, 1], np.int8), shape).astype(dtype)
    return (np.moveaxis(magnitudes, -1, axis) * sign).astype(dtype)


def to_flax(weight):
    """PyTorch's `(out, in, *spatial)` as Flax's `(*spatial, in, out)`."""
    return np.transpose(weight, (*range(2, weight.ndim), 1, 0))


SHAPES = [(6, 16), (3, 16, 5), (3, 16, 2, 3), (2, 16, 2, 1, 3)]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("shape", SHAPES)
def test_create_asp_mask_is_the_best_in_both_layouts(shape, dtype):
    weight = tie_free(shape, 4, 1, dtype)
    expected = reference.best_mask_by_sum(weight, 2, 4, 1)
    np.testing.assert_array_equal(
        js.create_asp_mask(weight, "2:4 sparsity", axis=1), expected
    )
    np.testing.assert_array_equal(
        js.create_asp_mask(to_flax(weight)), to_flax(expected)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_create_asp_mask_of_a_vector(dtype):
    weight = tie_free((24,), 4, 0, dtype)
    expected = reference.best_mask_by_sum(weight, 2, 4, 0)
    np.testing.assert_array_equal(js.create_asp_mask(weight, axis=0), expected)
    np.testing.assert_array_equal(js.create_asp_mask(weight), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_mn_1d_best_keeps_the_largest_sum(n, m, dtype):
    weight = tie_free((4, 2 * m), m, 1, dtype)
    exhaustive = reference.best_mask_by_rank
    if m <= 8:
        exhaustive = reference.best_mask_by_sum
    np.testing.assert_array_equal(
        js.mn_1d_best(weight, m, n), exhaustive(weight, n, m, 1)
    )


def test_the_sum_of_8_of_16_is_the_largest_of_all_patterns():
    weight = tie_free((2, 16), 16, 1, np.float32)
    table = reference.patterns(8, 16)
    best = table[np.argmax(np.abs(weight.astype(np.float64)) @ table.T, axis=1)]
    np.testing.assert_array_equal(js.mn_1d_best(weight, 16, 8), best)


def test_m4n2_1d_is_2_of_4():
    mat = jnp.array([[1.0, -5.0, 2.0, 3.0, 0.0, 9.0, 8.0, -7.0]])
    assert js.m4n2_1d(mat).tolist() == [
        [False, True, False, True, False, True, True, False]
    ]


@thorough(60)
@given(data=st.data())
def test_any_pattern_axis_and_shape(data):
    m = data.draw(st.integers(1, 64))
    n = data.draw(st.integers(1, m))
    shape = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    axis = data.draw(st.integers(0, len(shape) - 1))
    shape[axis] = data.draw(st.integers(0, 2 * m + 1))
    dtype = data.draw(st.sampled_from([np.float32, np.int8, np.float16]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    # Small integers: many ties.
    weight = rng.integers(-4, 5, shape).astype(dtype)
    mask = js.create_asp_mask(weight, (n, m), axis=axis - len(shape))
    np.testing.assert_array_equal(mask, reference.top_n_mask(weight, n, m, axis))


@thorough(40)
@given(data=st.data())
def test_small_patterns_by_trying_them_all(data):
    m = data.draw(st.integers(1, 8))
    n = data.draw(st.integers(1, m))
    size = data.draw(st.integers(0, 3 * m))
    values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-42, 1e38, np.inf, np.nan])
    row = data.draw(st.lists(values, min_size=size, max_size=size))
    weight = np.array([row], np.float32)
    expected = reference.best_mask_by_rank(weight, n, m, 1)
    np.testing.assert_array_equal(js.mn_1d_best(weight, m, n), expected)


def test_get_nmprune_info_reads_what_model_optimizer_reads():
    assert js.get_nmprune_info("2:4 sparsity") == (True, 2, 4)
    assert js.get_nmprune_info("a 10:16 sparsity pattern") == (True, 10, 16)
    for text in ("2:4", "", "dense", "2-4 sparsity", "2:4sparsity"):
        assert js.get_nmprune_info(text) == (False, 0, 0)


def test_the_patterns_of_2_of_4_from_1100_on():
    table = js.compute_valid_1d_patterns(4, 2)
    assert table.dtype == jnp.float32
    rows = ["".join(str(int(x)) for x in row) for row in table]
    assert rows == ["1100", "1010", "1001", "0110", "0101", "0011"]


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 4), (4, 8), (1, 64), (63, 64)])
def test_the_patterns_are_all_permutations_once(n, m):
    table = np.asarray(js.compute_valid_1d_patterns(m, n))
    assert table.shape == (math.comb(m, n), m)
    rows = {tuple(row) for row in table.tolist()}
    assert len(rows) == len(table)
    assert all(sum(row) == n for row in rows)
    if m <= 8:
        ones = [1.0] * n + [0.0] * (m - n)
        assert rows == set(itertools.permutations(ones))
    assert table.tolist() == sorted(table.tolist(), reverse=True)


def test_a_table_that_cannot_fit_is_refused_and_the_search_does_not_need_it():
    with pytest.raises(ValueError, match=r"601,080,390 patterns.*mn_1d_best"):
        js.compute_valid_1d_patterns(32, 16)
    weight = tie_free((2, 32), 32, 1, np.float32)
    expected = reference.top_n_mask(weight, 16, 32, 1)
    np.testing.assert_array_equal(js.mn_1d_best(weight, 32, 16), expected)


def test_reshape_1d_pads_each_row():
    groups, padded = js.reshape_1d(jnp.arange(1.0, 11.0).reshape(2, 5), 4)
    assert padded == (2, 8)
    assert groups.tolist() == [[1, 2, 3, 4], [5, 0, 0, 0], [6, 7, 8, 9], [10, 0, 0, 0]]
    groups, padded = js.reshape_1d(jnp.arange(8).reshape(2, 4), 2)
    assert padded == (2, 4)
    assert groups.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_fill_is_the_ratio_of_non_zeros():
    assert float(js.fill(jnp.array([[0.0, 1.0], [-0.0, np.nan]]))) == 0.5
    assert float(js.fill(np.float32([1e-42, 0, 0, 0]))) == 0.25  # subnormal
    assert float(js.fill(jnp.zeros((0, 4)))) == 0.0
    assert float(js.fill(jnp.array([0, 3, -1, 0], jnp.int8))) == 0.5
    assert float(js.fill(jnp.float32(2.0))) == 1.0


def test_fill_counts_past_the_integers_of_float32():
    assert float(js.fill(jnp.ones((2**13, 2**12), jnp.int8))) == 1.0


def test_masks_under_jit_vmap_and_strict_promotion():
    weight = tie_free((3, 8, 4), 4, 1, np.float32)
    expected = reference.best_mask_by_rank(weight, 2, 4, 1)
    with jax.numpy_dtype_promotion("strict"):
        for transform in (
            lambda f: f,
            jax.jit,
            jax.vmap,
            lambda f: jax.jit(jax.vmap(f)),
        ):
            mask = transform(js.create_asp_mask)(jnp.asarray(weight))
            np.testing.assert_array_equal(mask, expected)
    shape = jax.eval_shape(js.create_asp_mask, weight)
    assert (shape.shape, shape.dtype) == (weight.shape, jnp.bool_)


def test_vmap_over_groups_is_the_same_search():
    groups, _ = js.reshape_1d(tie_free((4, 16), 4, 1, np.float32), 4)
    one_by_one = jax.vmap(js.m4n2_1d)(groups)
    np.testing.assert_array_equal(one_by_one, js.m4n2_1d(groups))
