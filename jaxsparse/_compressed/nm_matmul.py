"""Products with compressed weights."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxsparse._compressed import cuda_matmul
from jaxsparse._compressed.compressed_array import Compressed, decompress
from jaxsparse._compressed.xla_matmul import wide_dot


def nm_matmul(
    x: ArrayLike, compressed: Compressed, *, implementation: str | None = None
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
      implementation: `"xla"` decompresses the weight on the fly: any device, pattern
        and dtype. `"cuda"` uses the sparse tensor cores of an H100 or H200: 2:4,
        bfloat16 or float16, multiples of 8 by 16, no explicit mesh or `shard_map`. It
        is compiled on first use by the nvcc that `jax[cuda13]` brings, reads the weight
        as it is stored, and skips what was pruned: an infinity in `x` there does not
        count. The default is the kernel where it can be had, else XLA.

    Returns:
      `[..., out]`, of the dtype that `jnp.dot` gives, but int32 for narrower integers.

    Raises:
      ValueError: a weight of another rank or with groups along its output axis, an `x`
        that does not fit, or an implementation that is unknown or cannot be had here.

    Warns:
      UserWarning: once, on a GPU that has the tensor cores but no compiler beside it.

    >>> from jaxsparse import compress
    >>> w = compress(jnp.array([[1.0], [0.0], [3.0], [0.0]]), "2:4")
    >>> nm_matmul(jnp.array([[1.0, 2.0, 3.0, 4.0]]), w)
    Array([[10.]], dtype=float32)
    """
    x = jnp.asarray(x)
    check_implementation(implementation)
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
    x = x.astype(dtype)
    values = jnp.asarray(compressed.values).astype(dtype)
    weight = replace(compressed, values=values, indices=jnp.asarray(compressed.indices))
    reason = (
        "" if implementation == "xla" else cuda_matmul.unsupported_reason(x, weight)
    )
    if implementation == "cuda" and reason:
        raise ValueError(
            f"implementation 'cuda' cannot be had: {reason}; x has shape {x.shape} "
            f"and the weight {weight.shape}: give 'xla', or None to take what there is"
        )
    return _product(implementation != "xla" and not reason, x, weight)


def check_implementation(name: str | None) -> None:
    """Raises unless there is such an implementation."""
    if name not in (None, "xla", "cuda"):
        raise ValueError(
            f"implementation {name!r} is unknown: give 'xla', 'cuda' or None"
        )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(by_kernel: bool, x: Array, compressed: Compressed) -> Array:
    if by_kernel:
        return cuda_matmul.cuda_matmul(x, compressed)
    return wide_dot(x, decompress(compressed), [x.ndim - 1], [0])


def _forward(by_kernel: bool, x: Array, compressed: Compressed):
    return _product(by_kernel, x, compressed), (x, compressed)


def _backward(_, residuals, gradient: Array):
    x, compressed = residuals
    # Decompressing is linear: its transpose picks the places of the values.
    dense, to_values = jax.vjp(
        lambda values: decompress(replace(compressed, values=values)),
        compressed.values,
    )
    rows = list(range(x.ndim - 1))
    (values,) = to_values(wide_dot(x, gradient, rows, rows))
    for_x = wide_dot(gradient, dense, [gradient.ndim - 1], [1])
    return for_x, replace(compressed, values=values, indices=None)


_product.defvjp(_forward, _backward)
