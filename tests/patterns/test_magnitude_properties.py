"""Masks of any shape, axis, pattern and bit pattern, drawn by hypothesis."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st

import jaxsparse as js
from tests import reference
from tests.thorough import thorough


FLOATS = [
    np.float32,
    np.float16,
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
]
INTEGERS = [np.int8, np.int32, np.int64]
DTYPES = [*FLOATS, np.int8, np.int32]


def name_of(dtype):
    return np.dtype(dtype).name


def from_bits(rng, dtype, shape, distinct):
    """Draws neighbours of a few bit patterns, of either sign.

    Near zero they are subnormals, near infinity NaN, near the sign bit the most
    negative integers, and elsewhere numbers that differ only in their last bits. At
    most `distinct` values are drawn from, so that ties are common.
    """
    width = 8 * np.dtype(dtype).itemsize
    unsigned = np.dtype(f"uint{width}")
    sign = unsigned.type(1 << (width - 1))
    one, infinity = (
        np.array(value).astype(dtype).view(unsigned)
        for value in (1, 0 if dtype in INTEGERS else np.inf)
    )
    drawn = rng.integers(0, 1 << width, 2, unsigned)
    centres = rng.choice(np.array([0, one, infinity, sign, *drawn], unsigned), 3)
    steps = rng.integers(-5, 6, distinct).astype(unsigned)  # these wrap around
    pool = rng.choice(centres, distinct) + steps
    pool = np.where(rng.random(distinct) < 0.5, pool, pool ^ sign).astype(unsigned)
    return rng.choice(pool, shape).view(dtype)


def without_non_finite(x):
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return np.where(np.isfinite(x), x, np.zeros_like(x))


@st.composite
def problems(draw, most, dtypes=DTYPES):
    """A weight, `n`, `m` and an axis counted from either end."""
    m = draw(st.integers(1, most))
    n = draw(st.integers(1, m))
    shape = draw(st.lists(st.integers(1, 2), min_size=1, max_size=5))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    shape[axis] = draw(st.integers(0, 2 * m + 1))
    dtype = draw(st.sampled_from(dtypes))
    distinct = draw(st.integers(1, 3 * m))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return from_bits(rng, dtype, shape, distinct), n, m, axis


def assert_a_mask_of(mask, weight):
    assert isinstance(mask, jax.Array)
    assert mask.shape == weight.shape
    assert mask.dtype == jnp.bool_


@thorough(60)
@given(problems(10))
def test_trying_every_pattern_finds_nothing_better(problem):
    weight, n, m, axis = problem
    mask = js.create_asp_mask(weight, (n, m), axis=axis)
    assert_a_mask_of(mask, weight)
    expected = reference.best_mask_by_rank(weight, n, m, axis)
    np.testing.assert_array_equal(mask, expected)


@thorough(60)
@given(problems(7))
def test_no_pattern_has_a_larger_exact_sum(problem):
    weight, n, m, axis = problem
    weight = without_non_finite(weight)
    mask = js.create_asp_mask(weight, (n, m), axis=axis)
    expected = reference.best_mask_by_sum(weight, n, m, axis)
    np.testing.assert_array_equal(mask, expected)


@thorough(60)
@given(problems(64))
def test_wide_groups_keep_the_highest_ranks(problem):
    weight, n, m, axis = problem
    mask = js.create_asp_mask(weight, (n, m), axis=axis)
    np.testing.assert_array_equal(mask, reference.top_n_mask(weight, n, m, axis))
    sizes = reference.n_per_group(np.ones(weight.shape, bool), m, axis)
    np.testing.assert_array_equal(
        reference.n_per_group(mask, m, axis), np.minimum(sizes, n)
    )


@pytest.mark.sweep
@thorough(40)
@given(problems(16, [np.float64, np.int64]))
def test_64_bits_under_x64(problem):
    weight, n, m, axis = problem
    with jax.enable_x64(True):
        mask = js.create_asp_mask(weight, js.NM(n, m), axis=axis)
    np.testing.assert_array_equal(mask, reference.top_n_mask(weight, n, m, axis))


@pytest.mark.sweep(keep=["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_transforms_change_nothing(dtype):
    weight = from_bits(np.random.default_rng(0), dtype, (3, 5, 8), 60)
    expected = reference.best_mask_by_rank(weight, 3, 4, 2)
    weight = jnp.asarray(weight)

    def search(w):
        return js.mn_1d_best(w, 4, 3)

    with jax.numpy_dtype_promotion("strict"):
        for f in (
            search,
            jax.jit(search),
            jax.vmap(search),
            jax.vmap(search, in_axes=1, out_axes=1),
            jax.jit(jax.vmap(jax.vmap(search))),
        ):
            np.testing.assert_array_equal(f(weight), expected)
        static = jax.jit(js.mn_1d_best, static_argnums=(1, 2))
        np.testing.assert_array_equal(static(weight, 4, 3), expected)
    np.testing.assert_array_equal(jnp.stack([search(w) for w in weight]), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_signs_and_a_second_search_change_nothing(dtype):
    rng = np.random.default_rng(1)
    weight = from_bits(rng, dtype, (6, 12), 200)
    if dtype in INTEGERS:
        weight = np.where(weight == np.iinfo(dtype).min, 0, weight).astype(dtype)
    mask = js.m4n2_1d(weight)
    np.testing.assert_array_equal(js.m4n2_1d(-weight), mask)
    weight = without_non_finite(weight)
    mask = np.asarray(js.m4n2_1d(weight))
    masked = np.where(mask, weight, np.zeros_like(weight))
    kept = np.where(np.asarray(js.m4n2_1d(masked)), masked, np.zeros_like(masked))
    np.testing.assert_array_equal(kept.astype(np.float64), masked.astype(np.float64))
