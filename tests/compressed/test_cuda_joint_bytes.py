"""Products of one input with several weights of eight bits, its rows quantized once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from tests.compressed.test_cuda_matmul_bytes import (
    BFLOAT16,
    EIGHT_BITS,
    whole_numbers,
)
from tests.gpu import needs_hopper


# Rows, k and the outputs of each weight: few rows, which float8 widens, and more.
SHAPES = [
    *[(1, 1032, (400, 16)), (16, 2056, (1808, 1040, 48)), (5, 264, (16384, 6992))],
    *[(17, 1032, (400, 528)), (300, 264, (2320, 144, 16, 48))],
]

multiply_all = lambda weights, x: [x @ w for w in weights]


@needs_hopper
@pytest.mark.parametrize("name", EIGHT_BITS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_whole_numbers_by_several_weights_are_exact(shape, name):
    rows, k, outs = shape
    dtype = np.float16 if rows % 2 else BFLOAT16
    problems = [whole_numbers(rows, k, out, name, dtype) for out in outs]
    x, weights = problems[0][0], [stored for _, stored, _ in problems]
    run = js.sparse_apply(multiply_all, quantize_activations=True)
    for result, stored in zip(jax.jit(run)(weights, x), weights, strict=True):
        dense = np.asarray(js.decompress(stored), np.float32)
        exact = (x.astype(np.float32) @ dense).astype(dtype)  # below 2^24: no rounding
        np.testing.assert_array_equal(result, exact)


@pytest.mark.gpu
@pytest.mark.usefixtures("available")
@pytest.mark.parametrize("name", EIGHT_BITS)
def test_rows_of_several_products_are_quantized_once(name):
    """Few rows of float8 are widened for the other kernel."""
    run = js.sparse_apply(multiply_all, quantize_activations=True)
    problems = [whole_numbers(6, 64, out, name, seed=out) for out in (32, 48, 16)]
    x, weights = problems[0][0], [stored for _, stored, _ in problems]

    def count_calls(x, target):
        lowered = jax.jit(run).trace(weights, x).lower(lowering_platforms=("cuda",))
        return lowered.as_text().count(f"custom_call @jaxsparse_{target}(")

    for rows in (x, np.tile(x, (9, 1))):
        joint = name != "int8" and len(rows) == 6
        assert count_calls(rows, "quantize_rows") == 1
        assert count_calls(rows, "nm_matmul") == joint
        assert count_calls(rows, "nm_matmul_bytes") == (0 if joint else 1)
    exact = [
        x.astype(np.float64) @ np.asarray(js.decompress(w), np.float64) for w in weights
    ]
    wanted = [product.astype(BFLOAT16) for product in exact]
    for result, product in zip(jax.jit(run)(weights, x), wanted, strict=True):
        np.testing.assert_array_equal(result, product)
    batched = jax.jit(jax.vmap(run, (None, 0)))(weights, x.reshape(2, 3, 64))
    for result, product in zip(batched, wanted, strict=True):
        np.testing.assert_array_equal(result, product.reshape(2, 3, -1))
    loss = lambda x: sum(y.astype(jnp.float32).sum() for y in run(weights, x))
    sums = sum(np.asarray(js.decompress(w), np.float64).sum(1) for w in weights)
    gradient = jax.jit(jax.grad(loss))(jnp.asarray(x))
    np.testing.assert_array_equal(gradient, np.tile(sums, (6, 1)).astype(BFLOAT16))
