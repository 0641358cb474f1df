"""Products with compressed weights, by the CUDA kernel or by XLA."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxsparse._compressed import cuda_matmul
from jaxsparse._compressed.compressed_array import Compressed, decompress
from jaxsparse._compressed.xla_matmul import tensordot, xla_matmul


def nm_matmul(
    x: ArrayLike, compressed: Compressed, *, implementation: str | None = None
) -> Array:
    """Returns `x @ decompress(compressed)`, computed from the compressed weight.

    Floats narrower than 32 bits are accumulated in float32, integers in int32.
    Differentiable in reverse mode, in `x` and in the values. The gradient of the values
    has their shape; the dense weight is not stored for the backward pass.

    Args:
      x: `[..., k]`, with any leading axes.
      compressed: a weight of shape `[k, out]` with groups along its first axis. For a
        stack of weights use `jax.vmap`, mapped over one axis of `values` and `indices`.
        Compress a kernel with more than two axes as a matrix.
      implementation: `"xla"` decompresses the weight on the fly, on any device, for any
        pattern and dtype. `"cuda"` uses the sparse tensor cores of an H100 or H200. It
        requires 2:4, bfloat16 or float16, a `k` divisible by 8 and an `out` divisible
        by 16, and allows neither an explicit mesh nor `shard_map`. The kernel is
        compiled on first use by the nvcc that `jax[cuda13]` installs. It reads only the
        stored values, so an infinity in `x` at a pruned weight has no effect. By
        default `"cuda"` is used if it is available, otherwise `"xla"`, and in programs
        of `jax.export` always `"xla"`.

    Returns:
      `[..., out]`, of the dtype of `jnp.dot`, but int32 for narrower integers.

    Raises:
      TypeError: the weight is not compressed.
      ValueError: the weight has another rank, or groups along its output axis; `x` does
        not fit the weight; or the implementation is unknown or not available.

    Warns:
      UserWarning: once, on a GPU with sparse tensor cores, if no CUDA compiler is
        installed.

    >>> from jaxsparse import compress
    >>> w = compress(jnp.array([[1.0], [0.0], [3.0], [0.0]]), "2:4")
    >>> nm_matmul(jnp.array([[1.0, 2.0, 3.0, 4.0]]), w)
    Array([[10.]], dtype=float32)
    """
    x = jnp.asarray(x)
    check_implementation(implementation)
    if not isinstance(compressed, Compressed):
        raise TypeError(
            f"nm_matmul takes a Compressed weight, got {type(compressed).__name__} of "
            f"shape {jnp.shape(compressed)}: give compress(w, '2:4', axis=0), or "
            "multiply it by x @ w"
        )
    if compressed.ndim != 2 or compressed.axis != -2:
        raise ValueError(
            "nm_matmul takes a weight [k, out] with groups along axis 0, got shape "
            f"{compressed.shape} with groups along axis "
            f"{compressed.axis + compressed.ndim}: compress it as such a matrix, with "
            "axis=0, or use jax.vmap for a stack of matrices"
        )
    if x.ndim == 0 or x.shape[-1] != compressed.shape[0]:
        raise ValueError(
            f"x of shape {x.shape} does not fit a weight of shape {compressed.shape}: "
            f"its last axis must have size {compressed.shape[0]}"
        )
    dtype = jnp.result_type(x, compressed.values)
    x = x.astype(dtype)
    values = jnp.asarray(compressed.values).astype(dtype)
    weight = replace(compressed, values=values, indices=jnp.asarray(compressed.indices))
    if implementation == "xla":
        return _matmul("xla", x, weight)
    reason = cuda_matmul.unsupported_reason(x, weight)
    if implementation == "cuda" and reason:
        raise ValueError(
            f"implementation 'cuda' is not available: {reason}; x has shape {x.shape} "
            f"and the weight {weight.shape}: give 'xla' or None"
        )
    return _matmul("xla" if reason else implementation, x, weight)


def check_implementation(name: str | None) -> None:
    """Raises `ValueError` if the implementation is unknown."""
    if name not in (None, "xla", "cuda"):
        raise ValueError(
            f"implementation {name!r} is unknown: give 'xla', 'cuda' or None"
        )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _matmul(implementation: str | None, x: Array, compressed: Compressed) -> Array:
    if implementation == "xla":
        return xla_matmul(x, compressed)
    exported = implementation == "cuda"
    return cuda_matmul.cuda_matmul(x, compressed, exported=exported)


def _forward(
    implementation: str | None, x: Array, compressed: Compressed
) -> tuple[Array, tuple[Array, Compressed]]:
    return _matmul(implementation, x, compressed), (x, compressed)


def _backward(
    _: str | None, residuals: tuple[Array, Compressed], gradient: Array
) -> tuple[Array, Compressed]:
    x, compressed = residuals
    # Decompressing is linear; its transpose gathers the positions of the values.
    dense, gather_values = jax.vjp(
        lambda values: decompress(replace(compressed, values=values)),
        compressed.values,
    )
    leading = list(range(x.ndim - 1))
    (values,) = gather_values(tensordot(x, gradient, leading, leading))
    x_gradient = tensordot(gradient, dense, [gradient.ndim - 1], [1])
    return x_gradient, replace(compressed, values=values, indices=None)


_matmul.defvjp(_forward, _backward)
