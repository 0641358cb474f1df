"""Arguments, results and errors of the functions, apart from the search."""

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxsparse as js
from tests import reference


SMALLEST = [
    (np.float32, 2.0**-149),
    (np.float16, 2.0**-24),
    (ml_dtypes.bfloat16, 2.0**-133),
    (ml_dtypes.float8_e4m3fn, 2.0**-9),
    (ml_dtypes.float8_e5m2, 2.0**-16),
]


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_every_spelling_of_a_pattern_is_the_same_pattern():
    weight = normal((8, 6))
    expected = reference.best_mask_by_sum(weight, 2, 4, 0)
    for pattern in ("2:4 sparsity", "2:4", (2, 4), js.NM(2, 4)):
        np.testing.assert_array_equal(js.create_asp_mask(weight, pattern), expected)
    np.testing.assert_array_equal(js.create_asp_mask(weight), expected)


def test_dense_in_flax_and_in_pytorch():
    torch = normal((3, 8))  # (out, in)
    expected = reference.best_mask_by_sum(torch, 2, 4, 1)
    np.testing.assert_array_equal(js.create_asp_mask(torch, axis=1), expected)
    np.testing.assert_array_equal(js.create_asp_mask(torch.T), expected.T)
    np.testing.assert_array_equal(js.create_asp_mask(torch.T, axis=0), expected.T)


@pytest.mark.parametrize("spatial", [(3,), (3, 2), (2, 1, 3)])
def test_convolutions_in_flax_and_in_pytorch(spatial):
    torch = normal((2, 8, *spatial))  # (out, in, *spatial)
    flax = np.moveaxis(torch, (1, 0), (-2, -1))  # (*spatial, in, out)
    assert flax.shape == (*spatial, 8, 2)
    expected = reference.best_mask_by_sum(torch, 2, 4, 1)
    np.testing.assert_array_equal(js.create_asp_mask(torch, axis=1), expected)
    np.testing.assert_array_equal(
        js.create_asp_mask(flax), np.moveaxis(expected, (1, 0), (-2, -1))
    )


@pytest.mark.parametrize("shape", [(16,), (3, 16), (2, 3, 16), (1, 2, 1, 3, 16)])
def test_mn_1d_best_groups_the_last_axis_of_any_rank(shape):
    weight = normal(shape)
    for n, m in ((2, 4), (3, 8)):
        mask = js.mn_1d_best(weight, m, n)
        expected = reference.best_mask_by_sum(weight, n, m, -1)
        np.testing.assert_array_equal(mask, expected)
        assert mask.dtype == jnp.bool_
    np.testing.assert_array_equal(
        js.m4n2_1d(weight), reference.best_mask_by_sum(weight, 2, 4, -1)
    )


@pytest.mark.parametrize("m", range(1, 9))
def test_patterns_are_itertools_combinations_in_order(m):
    for n in range(1, m + 1):
        table = js.compute_valid_1d_patterns(m, n)
        kept = [tuple(np.flatnonzero(row).tolist()) for row in np.asarray(table)]
        assert kept == list(itertools.combinations(range(m), n))
        assert table.dtype == jnp.float32


@pytest.mark.parametrize("size", [0, 4, 6])
def test_reshape_1d_keeps_dtype_and_works_under_jit(size):
    matrix = np.arange(3 * size).reshape(3, size).astype(ml_dtypes.bfloat16)
    padded = np.zeros((3, -(-size // 4) * 4), ml_dtypes.bfloat16)
    padded[:, :size] = matrix
    groups, shape = js.reshape_1d(matrix, 4)
    assert shape == padded.shape
    assert groups.dtype == jnp.bfloat16
    np.testing.assert_array_equal(groups, padded.reshape(-1, 4))
    jitted = jax.jit(lambda x: js.reshape_1d(x, 4)[0])(matrix)
    np.testing.assert_array_equal(jitted, padded.reshape(-1, 4))


@pytest.mark.parametrize(("dtype", "smallest"), SMALLEST)
def test_fill_counts_subnormals_and_nan_but_no_zero(dtype, smallest):
    x = np.array([0.0, -0.0, smallest, -smallest, np.nan, 1.0, 0.0, 0.0]).astype(dtype)
    with jax.numpy_dtype_promotion("strict"):
        for f in (js.fill, jax.jit(js.fill)):
            ratio = f(jnp.asarray(x))
            assert jnp.shape(ratio) == ()
            assert float(ratio) == 0.5


def test_fill_under_x64_and_vmap():
    with jax.enable_x64(True):
        assert float(js.fill(np.array([2.0**-1074, 0.0, -0.0, np.nan]))) == 0.5
    rows = jnp.array([[0.0, 1.0], [2.0, 3.0], [0.0, -0.0]])
    assert jax.vmap(js.fill)(rows).tolist() == [0.5, 1.0, 0.0]
    for shape in ((0,), (0, 8), (4, 0)):
        assert float(js.fill(np.zeros(shape, np.float32))) == 0.0


def test_shapes_without_running():
    weight = jax.ShapeDtypeStruct((3, 10), jnp.bfloat16)
    for f in (js.create_asp_mask, js.m4n2_1d, lambda w: js.mn_1d_best(w, 8, 3)):
        mask = jax.eval_shape(f, weight)
        assert (mask.shape, mask.dtype) == ((3, 10), jnp.bool_)


@pytest.mark.parametrize("search", [js.create_asp_mask, js.m4n2_1d])
def test_a_scalar_is_refused(search):
    for scalar in (np.float32(1.0), jnp.float32(1.0), jnp.int8(1)):
        with pytest.raises(ValueError, match=r"scalar|0-D|axis"):
            search(scalar)


@pytest.mark.parametrize("search", [js.create_asp_mask, js.m4n2_1d])
@pytest.mark.parametrize("dtype", [np.complex64, bool])
def test_the_refusal_of_a_dtype_names_it(search, dtype):
    with pytest.raises(TypeError, match=np.dtype(dtype).name):
        search(np.ones((4, 4), dtype))


@pytest.mark.parametrize("search", [js.create_asp_mask, js.m4n2_1d])
def test_keys_are_refused(search):
    with pytest.raises(TypeError, match="key"):
        search(jax.random.split(jax.random.key(0), 4))


@pytest.mark.parametrize("pattern", ["2-4", "banana"])
def test_the_refusal_of_a_pattern_repeats_it(pattern):
    with pytest.raises(ValueError, match=pattern):
        js.create_asp_mask(np.ones(8, np.float32), pattern)


@pytest.mark.parametrize("pattern", [(5, 4), (0, 4), (-1, 4), (2, 65), (1, 0)])
def test_the_refusal_of_numbers_repeats_them(pattern):
    n, m = pattern
    with pytest.raises(ValueError, match=rf"{n}\D+{m}|{m}\D+{n}"):
        js.create_asp_mask(np.ones(8, np.float32), pattern)


def test_errors_come_before_any_compute_under_jit_too():
    with pytest.raises(ValueError, match="axis 3"):
        jax.jit(lambda w: js.create_asp_mask(w, axis=3))(jnp.ones((4, 4)))
    with pytest.raises(TypeError, match="complex64"):
        jax.eval_shape(js.m4n2_1d, jax.ShapeDtypeStruct((4, 4), jnp.complex64))
