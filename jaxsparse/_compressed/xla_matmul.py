"""Products by XLA that are accumulated in 32 bits or more."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxsparse._compressed.compressed_array import Compressed, decompress


def xla_matmul(x: Array, compressed: Compressed) -> Array:
    """Returns `x @ decompress(compressed)`, accumulated in at least 32 bits.

    Args:
      x: `[..., k]`, of the dtype of the weight.
      compressed: a weight of shape `[k, out]`.

    Returns:
      `[..., out]`, of the dtype that `tensordot` gives.
    """
    return tensordot(x, decompress(compressed), [x.ndim - 1], [0])


def tensordot(
    a: Array, b: Array, a_axes: Sequence[int], b_axes: Sequence[int]
) -> Array:
    """Returns the contraction of two arrays, accumulated in at least 32 bits.

    Returns:
      An array of the dtype of `a`, but int32 if that is a narrower integer.
    """
    dimensions = ((a_axes, b_axes), ((), ()))
    if a.dtype.itemsize >= 4:
        return lax.dot_general(a, b, dimensions)
    if jnp.issubdtype(a.dtype, jnp.integer):
        return lax.dot_general(a, b, dimensions, preferred_element_type=jnp.int32)
    product = lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)
    return product.astype(a.dtype)
