"""Products with compressed weights."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxsparse._compress import Compressed, decompress


def nm_matmul(
    x: ArrayLike, compressed: Compressed, *, implementation: str = "xla"
) -> Array:
    """The product of `x` and a compressed weight: `jnp.dot(x, decompress(compressed))`.

    Narrow floats are added up in float32, narrow integers in int32. Differentiable, in
    reverse mode, in `x` and in the values: their gradient has the values' shape, and
    the dense weight is not kept for it.

    Args:
      x: `[..., k]`, any leading axes.
      compressed: a weight of shape `[k, out]` with groups along its first axis. Stacks
        of weights are multiplied under `jax.vmap`, with one axis of `values` and
        `indices` mapped; a kernel with more axes is compressed as a matrix.
      implementation: `"xla"`: the weight is decompressed on the fly, on any device.

    Returns:
      `[..., out]`, of the dtype that `jnp.dot` gives, but int32 for narrower integers.

    Raises:
      ValueError: a weight of another rank or with groups along its output axis, an `x`
        that does not fit, or an unknown implementation.

    >>> from jaxsparse import compress
    >>> w = compress(jnp.array([[1.0], [0.0], [3.0], [0.0]]), "2:4")
    >>> nm_matmul(jnp.array([[1.0, 2.0, 3.0, 4.0]]), w)
    Array([[10.]], dtype=float32)
    """
    x = jnp.asarray(x)
    if implementation != "xla":
        raise ValueError(f"implementation {implementation!r} is unknown: give 'xla'")
    if compressed.ndim != 2 or compressed.axis != -2:
        raise ValueError(
            "nm_matmul takes a weight [k, out] with groups along axis 0, got shape "
            f"{compressed.shape} with groups along axis "
            f"{compressed.axis + compressed.ndim}: compress it as such a matrix, with "
            "axis=0; use jax.vmap for a stack of them"
        )
    if x.ndim == 0 or x.shape[-1] != compressed.shape[0]:
        raise ValueError(
            f"x of shape {x.shape} does not fit a weight of shape {compressed.shape}: "
            f"its last axis has to be {compressed.shape[0]}"
        )
    dtype = jnp.result_type(x, compressed.values)
    weight = replace(compressed, values=compressed.values.astype(dtype))
    return _product(x.astype(dtype), weight)


@jax.custom_vjp
def _product(x: Array, compressed: Compressed) -> Array:
    return _dot(x, decompress(compressed), [x.ndim - 1], [0])


def _forward(x: Array, compressed: Compressed):
    return _product(x, compressed), (x, compressed)


def _backward(residuals, gradient: Array):
    x, compressed = residuals
    # Decompressing is linear: its transpose picks the places of the values.
    dense, to_values = jax.vjp(
        lambda values: decompress(replace(compressed, values=values)),
        compressed.values,
    )
    rows = list(range(x.ndim - 1))
    (values,) = to_values(_dot(x, gradient, rows, rows))
    for_x = _dot(gradient, dense, [gradient.ndim - 1], [1])
    return for_x, replace(compressed, values=values, indices=None)


_product.defvjp(_forward, _backward)


def _dot(a: Array, b: Array, a_axes: list[int], b_axes: list[int]) -> Array:
    """Contracts axes of both; adds up in 32 bits or more."""
    contracted = ((a_axes, b_axes), ((), ()))
    if a.dtype.itemsize >= 4:
        return lax.dot_general(a, b, contracted)
    if jnp.issubdtype(a.dtype, jnp.integer):
        return lax.dot_general(a, b, contracted, preferred_element_type=jnp.int32)
    wide = lax.dot_general(a, b, contracted, preferred_element_type=jnp.float32)
    return wide.astype(a.dtype)
