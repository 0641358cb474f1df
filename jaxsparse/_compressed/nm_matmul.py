"""Products with compressed weights, by the CUDA kernel or by XLA."""

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxsparse._compressed import cuda_matmul, kernel_support
from jaxsparse._compressed.check_arrays import require_fitting_arrays
from jaxsparse._compressed.compressed_array import Compressed, decompress
from jaxsparse._compressed.cuda_matmul_bytes import LIBRARY, cuda_matmuls_bytes
from jaxsparse._compressed.eight_bits import is_wide_float
from jaxsparse._compressed.quantized_matmul import (
    quantized_rows_matmul,
    weight_only_matmul,
)
from jaxsparse._compressed.xla_matmul import tensordot, xla_matmul
from jaxsparse._trees import require_kind


#: What computes matmuls with compressed weights.
Implementation = Literal["xla", "cuda"]


def nm_matmul(
    x: ArrayLike,
    compressed: Compressed,
    *,
    transposed: Compressed | None = None,
    implementation: Implementation | None = None,
    quantize_activations: bool = False,
) -> Array:
    """Returns `x @ decompress(compressed)`, computed from the compressed weight.

    Floats narrower than 32 bits are accumulated in float32, integers in int32.
    Differentiable in reverse mode, in `x` and in the values. The gradient of the values
    has their shape; the dense weight is not stored for the backward pass.

    The values of a quantized weight are multiplied as they are, and the sums by the
    scales, in float32; where groups of inputs have scales, the values are multiplied by
    them first. The scales have gradients. Values of int8 have none, and those of float8
    have gradients in float8, which are too coarse to train with.

    Args:
      x: `[..., k]`, with any leading axes.
      compressed: a weight of shape `[k, out]` with groups along its first axis. For a
        stack of weights use `jax.vmap`, mapped over the first axis of all its arrays:
        a kernel multiplies them in one launch.
        Compress a kernel with more than two axes as a matrix.
      transposed: the same weight as `[out, k]` with groups along its first axis, as a
        transposable mask allows: `compress(w.T, mask=mask.T, axis=0)`. The gradient of
        `x` is then a product with it, by the same implementation. By default it is one
        with the decompressed weight.
      implementation: `"xla"` decompresses the weight on the fly, on any device, for any
        pattern and dtype. `"cuda"` uses kernels for an H100 or H200: for 2:4 one for
        sparse tensor cores, for 4:8 and 8:16 one that expands the weight, for few rows.
        They require bfloat16 or float16 (or, for 2:4, such an `x` and a quantized
        weight with one scale for each output), a `k` divisible by 8 (4:8 and 8:16: by
        16) and an `out` divisible by 16, and of a `jax.vmap` at most 16,383 weights.
        They allow no explicit mesh and no `shard_map`. They are compiled on first use
        by the nvcc that `jax[cuda13]` installs. Those of 2:4 read only the stored
        values, so an infinity in `x` at a pruned weight has no effect, unless
        activations are quantized. By default `"cuda"` is used if it is available, but
        for 4:8 and 8:16 only for up to 32 rows, otherwise `"xla"`, and in programs of
        `jax.export` always `"xla"`.
      quantize_activations: whether to quantize each row of `x` to the eight bits of the
        weight, by its largest magnitude. Sums are then in int32 for int8, and exact.
        For float8, they are in float32, but with more than 16 rows the tensor cores of
        `"cuda"` cut off each term 13 bits below the highest bit of the largest, once
        for every 64 inputs. The gradient is that of the product without it.

    Returns:
      `[..., out]`, of the dtype of `jnp.dot`, but int32 for narrower integers. For a
      quantized weight the dtype is that of `x`.

    Raises:
      TypeError: the weight is not compressed; or it is quantized, and `x` is not of
        floats of 16 bits or more.
      ValueError: the weight has another rank, or groups along its output axis; its
        arrays do not fit each other; `x` does not fit the weight; the implementation
        is unknown or not available; or activations are to be quantized for a weight
        that is not quantized, has more than one scale for each output, or keeps so many
        weights of int8 that the sums might not fit int32.

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
    if transposed is not None:
        _check_transposed(compressed, transposed)
        options = implementation, quantize_activations
        return _matmul_both(options, *as_jax((x, compressed, transposed)))
    remedy = "give compress(w, '2:4', axis=0), or multiply it by x @ w"
    require_kind("nm_matmul", compressed, (Compressed,), remedy)
    require_fitting_arrays(compressed, "a weight")
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
    if compressed.is_quantized:
        _check_quantized(x, compressed)
    if quantize_activations:
        check_quantizes_rows(compressed)
    x, weight = _with_common_dtype(*as_jax((x, compressed)))
    if implementation == "xla":
        return _matmul("xla", quantize_activations, x, weight)
    library = LIBRARY if quantize_activations else ""
    reason = kernel_support.unsupported_reason(x, weight, library)
    if implementation == "cuda" and reason:
        raise ValueError(
            f"implementation 'cuda' is not available: {reason}; x has shape {x.shape} "
            f"and the weight {weight.shape}: give 'xla' or None"
        )
    chosen = "xla" if reason else implementation
    return _matmul(chosen, quantize_activations, x, weight)


@partial(jax.jit, inline=True)  # a call in the program would hide products from XLA
def as_jax(operands: Any) -> Any:
    """Returns arrays as JAX's, also those of NumPy that `jax.vmap` splits.

    JAX (up to 0.12) refuses the latter as "non-canonical" constants when a program
    that is compiled calls a function with a gradient of its own.
    """
    return operands


def check_implementation(name: str | None) -> None:
    """Raises `ValueError` if the implementation is unknown."""
    if name not in (None, "xla", "cuda"):
        raise ValueError(
            f"implementation {name!r} is unknown: give 'xla', 'cuda' or None"
        )


def _check_quantized(x: Array, weight: Compressed) -> None:
    """Raises unless `x` holds every number of a quantized weight."""
    if not is_wide_float(x.dtype):
        raise TypeError(
            f"x of shape {x.shape} and dtype {x.dtype} does not fit a weight of shape "
            f"{weight.shape} that is quantized to {weight.values.dtype}: cast x to "
            "bfloat16 or float32"
        )


def check_quantizes_rows(weight: Compressed) -> None:
    """Raises unless the weight fits quantized activations."""
    if not weight.is_quantized:
        raise ValueError(
            f"activations are quantized like the weight, but a weight of shape "
            f"{weight.shape} and dtype {weight.dtype} is not quantized: give "
            "quantize_compressed(w, 'int8'), compress_params(..., quantize='int8'), or "
            "quantize_activations=False"
        )
    if weight.scales.shape[0] != 1:
        raise ValueError(
            f"quantized activations need one scale for each output, but a weight of "
            f"shape {weight.shape} has scales of shape {weight.scales.shape}: quantize "
            "it without group_size and with all contracted axes in contracted=, or "
            "give quantize_activations=False"
        )
    kept = weight.values.shape[0]
    if weight.values.dtype == jnp.int8 and kept * 127 * 128 >= 2**31:
        raise ValueError(
            f"sums of {kept} products of int8, of a weight of shape {weight.shape}, "
            "might not fit int32: give float8_e4m3fn, or quantize_activations=False"
        )


def _with_common_dtype(x: Array, weight: Compressed) -> tuple[Array, Compressed]:
    """Returns the operands in the dtype of the product."""
    if weight.is_quantized:
        return x, replace(weight, quantized_from=x.dtype)
    dtype = jnp.result_type(x, weight.values)
    return x.astype(dtype), replace(weight, values=weight.values.astype(dtype))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _matmul(
    implementation: Implementation | None,
    quantize_activations: bool,
    x: Array,
    compressed: Compressed,
) -> Array:
    if implementation != "xla":
        exported = implementation == "cuda"
        if quantize_activations:
            return cuda_matmuls_bytes(x, [compressed], exported=exported)[0]
        return cuda_matmul.cuda_matmul(x, compressed, exported=exported)
    if quantize_activations:
        return quantized_rows_matmul(x, compressed)
    if compressed.is_quantized:
        return weight_only_matmul(x, compressed)
    return xla_matmul(x, compressed)


def _forward(
    implementation: Implementation | None,
    quantize_activations: bool,
    x: Array,
    compressed: Compressed,
) -> tuple[Array, tuple[Array, Compressed]]:
    residuals = x, compressed
    return _matmul(implementation, quantize_activations, *residuals), residuals


def _backward(
    _implementation: Implementation | None,
    _quantize_activations: bool,
    residuals: tuple[Array, Compressed],
    gradient: Array,
) -> tuple[Array, Compressed]:
    return matmul_gradients(*residuals, gradient)


def matmul_gradients(
    x: Array, compressed: Compressed, gradient: Array
) -> tuple[Array, Compressed]:
    """Returns the gradients of `x` and the weight, given that of the product."""
    # Decompressing is linear; its transpose gathers the positions of the values.
    dense, gather_values = jax.vjp(decompress, compressed)
    leading = list(range(x.ndim - 1))
    (by_weight,) = gather_values(tensordot(x, gradient, leading, leading))
    return tensordot(gradient, dense, [gradient.ndim - 1], [1]), by_weight


_matmul.defvjp(_forward, _backward)


def _check_transposed(compressed: Compressed, transposed: Compressed) -> None:
    """Raises unless two weights may be the transposes of each other."""
    remedy = "give compress(w, '2:4', axis=0) and compress(w.T, mask=mask.T, axis=0)"
    for weight in (compressed, transposed):
        require_kind("nm_matmul with transposed=", weight, (Compressed,), remedy)
    if transposed.shape != compressed.shape[::-1] or transposed.axis != -2:
        raise ValueError(
            f"a weight of shape {compressed.shape} has a transposed one of shape "
            f"{transposed.shape} with groups along axis {transposed.axis}: give "
            "compress(w.T, mask=mask.T, axis=0)"
        )


_Options = tuple[Implementation | None, bool]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _matmul_both(
    options: _Options, x: Array, compressed: Compressed, transposed: Compressed
) -> Array:
    """As `nm_matmul`, given its options, but the gradient of `x` uses `transposed`."""
    del transposed
    implementation, quantize = options
    return nm_matmul(
        x, compressed, implementation=implementation, quantize_activations=quantize
    )


def _forward_both(
    options: _Options, x: Array, compressed: Compressed, transposed: Compressed
) -> tuple[Array, tuple[Array, Compressed, Compressed]]:
    residuals = x, compressed, transposed
    return _matmul_both(options, *residuals), residuals


def _backward_both(
    options: _Options,
    residuals: tuple[Array, Compressed, Compressed],
    gradient: Array,
) -> tuple[Array, Compressed, None]:
    x, compressed, transposed = residuals
    matmul = lambda weight: nm_matmul(x, weight, implementation=options[0])
    (by_weight,) = jax.vjp(matmul, compressed)[1](gradient)
    by_x = nm_matmul(gradient, transposed, implementation=options[0])
    return by_x.astype(x.dtype), by_weight, None


_matmul_both.defvjp(_forward_both, _backward_both)
