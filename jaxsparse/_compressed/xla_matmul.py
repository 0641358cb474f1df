"""Products that are added up in 32 bits or more."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


def wide_dot(a: Array, b: Array, a_axes: list[int], b_axes: list[int]) -> Array:
    """Contracts axes of both. Narrow floats come back as narrow, integers as int32."""
    contracted = ((a_axes, b_axes), ((), ()))
    if a.dtype.itemsize >= 4:
        return lax.dot_general(a, b, contracted)
    if jnp.issubdtype(a.dtype, jnp.integer):
        return lax.dot_general(a, b, contracted, preferred_element_type=jnp.int32)
    wide = lax.dot_general(a, b, contracted, preferred_element_type=jnp.float32)
    return wide.astype(a.dtype)
