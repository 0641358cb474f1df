"""A function for this machine's GPUs, and another for programs that are exported."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.kernels.export import unless_exported


def kernel(x, y):
    return {"sum": x + y, "scaled": 2 * x}


def portable(x, y):
    return {"sum": y + x, "scaled": x * jnp.exp2(1.0)}


def choose(x, y):
    return unless_exported(kernel, portable, x, y)


@pytest.mark.parametrize("transform", [lambda fn: fn, jax.jit])
def test_trees_of_results_also_of_batches(transform):
    x, y = np.arange(6.0).reshape(2, 3), np.arange(3.0)
    result = transform(choose)(x, y)
    np.testing.assert_array_equal(result["sum"], x + y)
    batched = transform(jax.vmap(choose, (0, None)))(x, y)
    np.testing.assert_array_equal(batched["sum"], x + y)
    np.testing.assert_array_equal(batched["scaled"], 2 * x)


def test_what_is_exported_is_portable():
    x = jnp.ones(3)
    assert "exp" not in jax.jit(choose).lower(x, x).as_text()
    text = jax.export.export(jax.jit(choose))(x, x).mlir_module()
    assert "exp" in text or "power" in text
