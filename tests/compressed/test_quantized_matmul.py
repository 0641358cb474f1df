"""Products with quantized weights against float64, exact for whole numbers."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxsparse as js
from tests.compressed import quantization_oracle as oracle
from tests.compressed.layout_oracle import as_compressed, random_mask
from tests.compressed.products import assert_product


FORMATS = ["int8", "float8_e4m3fn"]


def problem(rng, rows, k, out, name, dtype=np.float32, group_size=None):
    """Returns activations, a quantized weight, and its exact product of both parts."""
    w = rng.normal(size=(k, out)).astype(np.float32)
    stored = as_compressed(w, random_mask(rng, w.shape, 2, 4, 0), 2, 4, 0)
    small = js.quantize_compressed(stored, name, group_size=group_size)
    x = rng.normal(size=(*rows, k)).astype(dtype)
    return x, replace(small, quantized_from=jnp.dtype(dtype)), exact_weight(small)


def exact_weight(small):
    """Returns values times scales in float64, zeros included."""
    codes = js.decompress(js.Compressed(small.values, small.indices, js.NM(2, 4), -2))
    codes, scales = (np.asarray(x).astype(np.float64) for x in (codes, small.scales))
    return codes * np.repeat(scales, len(codes) // len(scales), 0)


@pytest.mark.sweep(keep=["bfloat16-16-int8", "bfloat16-None-float8"], whole=True)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("group_size", [None, 16])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_weight_only_products_are_rounded_once(name, group_size, dtype):
    rng = np.random.default_rng(0)
    x, small, exact = problem(rng, (2, 3), 48, 8, name, dtype, group_size)
    result = js.nm_matmul(x, small)
    assert (result.dtype, result.shape) == (dtype, (2, 3, 8))
    assert_product(result, x, exact)


@pytest.mark.sweep(keep=["bfloat16"])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_products_of_quantized_rows(name, dtype):
    x, small, exact = problem(np.random.default_rng(1), (2, 3), 48, 8, name, dtype)
    x[1, 2] = 0
    result = js.nm_matmul(x, small, quantize_activations=True)
    assert (result.dtype, result.shape) == (dtype, (2, 3, 8))
    scales = oracle.absmax_scales(x, name, [-1])
    rows = oracle.quantized(x, scales, name) * scales
    assert_product(result, rows, exact)


@pytest.mark.sweep(keep=["int8-True"])
@pytest.mark.parametrize("quantize_activations", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_whole_numbers_are_exact(name, quantize_activations):
    """Rows and columns have their scale's largest number, so all scales are known."""
    rng = np.random.default_rng(2)
    numbers = np.arange(128) if name == "int8" else oracle.E4M3[oracle.E4M3 % 1 == 0]
    codes = rng.choice(numbers, (16, 6)) * rng.choice([-1, 1], (16, 6))
    codes[1] = numbers[-1]
    mask = random_mask(rng, codes.shape, 2, 4, 0)
    mask[:4] = np.array([1, 1, 0, 0], bool)[:, None]
    scales = [1, 3, 0.5, 2.0**-30, 5, 7]
    stored = as_compressed((codes * scales).astype(np.float32), mask, 2, 4, 0)
    x = rng.choice(numbers, (5, 16))
    x[:, 3] = numbers[-1]
    x = x * np.array([[1], [-2], [0.25], [3], [0]])
    result = js.nm_matmul(
        x.astype(np.float32),
        js.quantize_compressed(stored, name),
        quantize_activations=quantize_activations,
    )
    np.testing.assert_array_equal(result, x @ np.where(mask, codes * scales, 0))


@pytest.mark.sweep(keep=["int8-options1"])
@pytest.mark.parametrize("options", [{}, {"quantize_activations": True}])
@pytest.mark.parametrize("name", FORMATS)
def test_gradients_are_those_of_the_weight_only_product(name, options):
    x, small, exact = problem(np.random.default_rng(3), (5,), 16, 4, name)
    cotangent = np.random.default_rng(4).normal(size=(5, 4)).astype(np.float32)

    def loss(x, scales):
        y = js.nm_matmul(x, replace(small, scales=scales), **options)
        return jnp.sum(y * cotangent)

    by_x, by_scales = jax.jit(jax.grad(loss, (0, 1)))(x, small.scales)
    np.testing.assert_allclose(by_x, cotangent @ exact.T, rtol=1e-5, atol=1e-5)
    codes = exact / np.asarray(small.scales, np.float64)
    by_column = np.sum(codes * (x.astype(np.float64).T @ cotangent), 0, keepdims=True)
    np.testing.assert_allclose(by_scales, by_column, rtol=1e-5, atol=1e-3)


@pytest.mark.sweep
def test_stacks_by_vmap_and_scan():
    rng = np.random.default_rng(5)
    problems = [problem(rng, (2,), 8, 3, "int8") for _ in range(3)]
    x, exact = (np.stack([p[i] for p in problems]) for i in (0, 2))
    small = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[p[1] for p in problems])
    assert small.scales.shape == (3, 1, 3)
    assert_product(jax.vmap(js.nm_matmul)(x, small), x, exact)
    body = lambda _, operands: (None, js.nm_matmul(*operands))
    assert_product(jax.lax.scan(body, None, (jnp.asarray(x), small))[1], x, exact)
    dense = jax.vmap(js.decompress)(small)
    np.testing.assert_array_equal(js.decompress(small), dense)


@pytest.mark.sweep
def test_the_result_has_the_dtype_of_x_whatever_the_weights_was():
    x, small, exact = problem(np.random.default_rng(6), (2,), 8, 3, "int8")
    with jax.numpy_dtype_promotion("strict"):
        result = js.nm_matmul(x.astype(ml_dtypes.bfloat16), small)
    assert result.dtype == jnp.bfloat16
    assert_product(result, x.astype(ml_dtypes.bfloat16), exact)


@pytest.mark.sweep
def test_float64_is_accumulated_in_float64():
    with jax.enable_x64(True):
        x, small, exact = problem(np.random.default_rng(7), (2,), 8, 3, "int8", float)
        result = js.nm_matmul(x, small)
        np.testing.assert_allclose(result, x @ exact, rtol=1e-14)
        assert result.dtype == np.float64


@pytest.mark.sweep
@pytest.mark.parametrize("name", FORMATS)
def test_activations_that_are_not_finite_are_not_hidden(name):
    x, small, _ = problem(np.random.default_rng(8), (3,), 8, 3, name)
    x[1, 0], x[2, 5] = np.inf, np.nan
    result = js.nm_matmul(x, small, quantize_activations=True)
    np.testing.assert_array_equal(np.isnan(result).all(1), [False, True, True])
    assert np.isfinite(result[0]).all()


def test_errors():
    x, small, _ = problem(np.random.default_rng(9), (3,), 8, 4, "int8")
    _, grouped, _ = problem(np.random.default_rng(9), (3,), 8, 4, "int8", group_size=4)
    plain = js.compress(np.ones((8, 4), np.float32))
    with pytest.raises(TypeError, match=r"\(3, 8\) and dtype int32 .*cast x"):
        js.nm_matmul(x.astype(np.int32), small)
    with pytest.raises(ValueError, match=r"\(8, 4\) .*is not quantized: give"):
        js.nm_matmul(x, plain, quantize_activations=True)
    with pytest.raises(ValueError, match=r"scales of shape \(2, 4\).*group_size"):
        js.nm_matmul(x, grouped, quantize_activations=True)
    needs_kernel = partial(js.nm_matmul, implementation="cuda")
    with pytest.raises(ValueError, match="the dtype is float32, not bfloat16"):
        needs_kernel(x, small)
    with pytest.raises(ValueError, match=r"scales of shape \(2, 4\), not \(1, out\)"):
        needs_kernel(x.astype(ml_dtypes.bfloat16), grouped)
    with pytest.raises(ValueError, match="the dtype is float32, not bfloat16"):
        needs_kernel(x, small, quantize_activations=True)


@pytest.mark.sweep
def test_sums_that_might_not_fit_int32_are_refused():
    plain = js.compress(np.ones((270_000, 1), np.float32), axis=0)
    x = np.ones((1, 270_000), np.float32)
    with pytest.raises(ValueError, match=r"sums of 135000 .* \(270000, 1\)"):
        js.nm_matmul(x, js.quantize_compressed(plain), quantize_activations=True)
