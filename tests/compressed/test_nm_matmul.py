"""Products with compressed weights against float64, and gradients by differences."""

from dataclasses import replace
from itertools import product

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st

import jaxsparse as js
from tests.compressed.layout_oracle import (
    as_compressed,
    random_mask,
)
from tests.compressed.products import assert_product, problem
from tests.thorough import thorough


SIZES = [1, 7, 8, 15, 16, 17, 63, 64, 65, 70]


@pytest.mark.sweep
def test_sizes_in_all_pairs():
    rng = np.random.default_rng(0)
    inner = [k for k in SIZES if k % 4 == 0]
    problems, weights = {}, {}
    for (i, rows), (j, out) in product(enumerate(SIZES), enumerate(SIZES)):
        k = inner[(i + j) % len(inner)]  # pairs k with every size
        x, weights[rows, out], stored = problem(rng, (rows,), k, out)
        problems[rows, out] = x, stored
    multiply_all = jax.jit(lambda problems: [js.nm_matmul(*p) for p in problems])
    results = multiply_all(list(problems.values()))
    for sizes, result in zip(problems, results, strict=True):
        assert (result.shape, result.dtype) == (sizes, jnp.float32)
        assert_product(result, problems[sizes][0], weights[sizes])


# Each is compiled once; numbers, masks and leading axes are drawn.
CASES = [
    (np.float32, (2, 4), 12, 5),
    (np.float32, (8, 16), 48, 3),
    (ml_dtypes.bfloat16, (2, 4), 64, 7),
    (ml_dtypes.bfloat16, (1, 4), 8, 8),
    (ml_dtypes.bfloat16, (4, 8), 72, 1),
    (np.float16, (2, 4), 20, 16),
    (np.float16, (3, 16), 32, 2),
    (ml_dtypes.float8_e4m3fn, (2, 4), 16, 4),
    (np.int8, (2, 4), 64, 9),
    (np.int8, (2, 8), 24, 6),
]


@pytest.mark.sweep(full=["test_drawn_products"])
@thorough(200)
@given(
    st.sampled_from(CASES),
    st.sampled_from([(), (1,), (3,), (2, 3)]),
    st.integers(0, 2**32),
    st.sampled_from([1, 2.0**-6, 2.0**6]),
)
def test_drawn_products(case, rows, seed, scale):
    dtype, pattern, k, out = case
    x, weight, stored = problem(
        np.random.default_rng(seed), rows, k, out, dtype, pattern
    )
    x = x if dtype == np.int8 else (x.astype(np.float32) * scale).astype(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        exact = x.astype(np.float64) @ weight.astype(np.float64)
    result = js.nm_matmul(x, stored)
    assert result.dtype == (jnp.int32 if dtype == np.int8 else dtype)
    assert result.shape == (*rows, out)
    if dtype == np.int8 or abs(exact).max() < float(ml_dtypes.finfo(dtype).max) / 2:
        assert_product(result, x, weight)


def differences(f, x, step=0.5):
    """Returns the gradient of a function that is at most quadratic in each number."""
    slopes = np.empty(x.shape)
    for index in np.ndindex(x.shape):
        change = np.zeros(x.shape)
        change[index] = step
        slopes[index] = (f(x + change) - f(x - change)) / (2 * step)
    return slopes


def dense_of(values, mask):
    """Returns the weight with these values where a mask keeps exactly `n`."""
    columns = np.zeros(mask.T.shape)
    columns[mask.T] = values.T.ravel()
    return columns.T


@pytest.mark.parametrize("batched", [False, True])
def test_gradients_are_finite_differences(batched):
    rng = np.random.default_rng(1)
    shape, rows = (8, 3), (2, 2)
    mask = random_mask(rng, shape, 2, 4, 0)
    stored = as_compressed(rng.normal(size=shape), mask, 2, 4, 0)
    lead = (3,) if batched else ()
    x = rng.normal(size=(*lead, *rows, 8))
    values = rng.normal(size=(*lead, *stored.values.shape))

    def loss(x, values):
        return jnp.sum(js.nm_matmul(x, replace(stored, values=values)) ** 2)

    with jax.enable_x64(True):
        gradient = jax.grad(loss, (0, 1))
        result = jax.jit(jax.vmap(gradient) if batched else gradient)(x, values)
    exact = lambda x, values: np.sum((x @ dense_of(values, mask)) ** 2)
    for one in np.ndindex(lead):
        by_x = differences(lambda x, v=values[one]: exact(x, v), x[one])
        by_values = differences(lambda v, x=x[one]: exact(x, v), values[one])
        np.testing.assert_allclose(result[0][one], by_x, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(result[1][one], by_values, rtol=1e-9, atol=1e-9)


@pytest.mark.sweep(keep=["bfloat16"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_of_narrow_floats_are_accumulated_in_float32(dtype):
    x, weight, stored = problem(
        np.random.default_rng(2), (600,), 16, 4, jnp.dtype(dtype)
    )
    stored = jax.tree.map(jnp.asarray, stored)
    with jax.numpy_dtype_promotion("strict"):
        y, back = jax.vjp(js.nm_matmul, jnp.asarray(x), stored)
        by_x, by_weight = back(jnp.ones_like(y))
    assert (by_x.dtype, by_weight.values.dtype) == (x.dtype, x.dtype)
    assert_product(by_x, np.ones((600, 4), x.dtype), weight.T)
    dense = js.decompress(replace(stored, values=by_weight.values))
    columns = np.broadcast_to(x.T.astype(np.float64).sum(1)[:, None], dense.shape)
    kept = np.asarray(dense) != 0
    np.testing.assert_array_equal(kept.sum(0), 8)
    eps = float(ml_dtypes.finfo(x.dtype).eps)
    np.testing.assert_allclose(
        np.asarray(dense, np.float64)[kept], columns[kept], rtol=eps, atol=1e-2
    )


def test_batches_by_vmap_and_scan():
    rng = np.random.default_rng(3)
    problems = [problem(rng, (2,), 8, 3) for _ in range(3)]
    x, weight = (np.stack([p[i] for p in problems]) for i in (0, 1))
    stored = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[p[2] for p in problems])
    assert_product(jax.vmap(js.nm_matmul)(x, stored), x, weight)
    shared = jax.vmap(js.nm_matmul, in_axes=(None, 0))(x[0], stored)
    assert_product(shared, np.broadcast_to(x[0], x.shape), weight)
    body = lambda _, operands: (None, js.nm_matmul(*operands))
    assert_product(jax.lax.scan(body, None, (jnp.asarray(x), stored))[1], x, weight)


@pytest.mark.parametrize("of_jit", [False, True], ids=["jit of grad", "grad of jit"])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_compiled_gradient_closes_over_numpy_arrays(of_jit, transposed):
    rng = np.random.default_rng(5)
    problems = [(problem(rng, (2,), 8, 4), problem(rng, (), 4, 8)) for _ in range(3)]
    x, weight = (np.stack([own[i] for own, _ in problems]) for i in (0, 1))
    stack = lambda *leaves: np.stack(leaves)
    stored = jax.tree.map(stack, *[own[2] for own, _ in problems])
    other = None
    if transposed:  # by which the gradient multiplies
        weight = np.stack([back[1].T for _, back in problems])
        other = jax.tree.map(stack, *[back[2] for _, back in problems])
    multiply = lambda x, w, t: js.nm_matmul(x, w, transposed=t)
    fn = lambda x: jax.vmap(multiply)(x, stored, other).sum()
    gradient = jax.grad(jax.jit(fn)) if of_jit else jax.jit(jax.grad(fn))
    expected = np.broadcast_to(weight.sum(-1)[:, None], x.shape)
    np.testing.assert_allclose(gradient(jnp.asarray(x)), expected, 1e-4, 1e-5)


def test_mixed_dtypes_are_promoted_as_by_dot():
    x, weight, stored = problem(np.random.default_rng(4), (2,), 8, 3)
    half = replace(stored, values=jnp.asarray(stored.values, jnp.bfloat16))
    result = js.nm_matmul(x, half)
    assert result.dtype == jnp.float32
    assert_product(result, x, weight.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("x", "shape", "axis", "words"),
    [
        ((3, 7), (8, 4), 0, r"\(3, 7\).*\(8, 4\)"),
        ((), (8, 4), 0, r"x of shape \(\)"),
        ((3, 4), (4, 8), 1, r"\(4, 8\) with groups along axis 1.*axis=0"),
        ((3, 8), (2, 8, 4), 1, r"\(2, 8, 4\).*jax.vmap"),
        ((3, 8), (8,), 0, r"\(8,\)"),
    ],
)
def test_errors(x, shape, axis, words):
    stored = js.compress(np.ones(shape, np.float32), axis=axis)
    with pytest.raises(ValueError, match=words):
        js.nm_matmul(np.ones(x, np.float32), stored)


def test_a_weight_whose_arrays_were_cast_is_refused():
    cast = lambda weight: jax.tree.map(lambda x: x.astype(jnp.bfloat16), weight)
    stored = js.compress(np.ones((8, 4), np.float32))
    small = js.quantize_compressed(stored)
    for weight, words in (
        (cast(stored), r"\(8, 4\) .*indices of bfloat16.*values alone"),
        (replace(small, scales=cast(small.scales)), "bfloat16 scales.*values alone"),
        (replace(small, scales=None), "no scales, expected float32"),
        (replace(small, quantized_from=None), "without quantized_from"),
    ):
        with pytest.raises(ValueError, match=words):
            js.nm_matmul(np.ones((1, 8), np.float32), weight)


@pytest.mark.usefixtures("without_annotations")
def test_an_unknown_implementation_is_refused():
    x, _, stored = problem(np.random.default_rng(5), (2,), 8, 3)
    with pytest.raises(ValueError, match="'fast' is unknown"):
        js.nm_matmul(x, stored, implementation="fast")
