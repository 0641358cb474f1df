"""Products of quantized rows and 2:4 weights of eight bits on Hopper's tensor cores.

`kernels/nm_matmul_bytes.cuh` explains the kernel. Rows are quantized by another before,
as `quantized_rows_matmul` does it, once for several weights. A few rows of float8 are
multiplied by the kernel of `cuda_matmul` for few rows instead. Under `vmap`, batches of
rows become more rows, and stacked weights, such as experts, are multiplied in one
launch. Over automatic axes of a mesh each device multiplies its own shards; scales of
rows are those of whole rows.
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from jaxsparse._compressed import kernel_support
from jaxsparse._compressed.batched_products import multiply_batch
from jaxsparse._compressed.compressed_array import Compressed
from jaxsparse._compressed.cuda_matmul import launch
from jaxsparse._compressed.cuda_quantize_rows import cuda_quantize_rows
from jaxsparse._compressed.kernel_choice import (
    FEW_ROWS,
    choose_kernel,
    choose_tile,
)
from jaxsparse._compressed.quantized_matmul import multiply_quantized_rows
from jaxsparse._patterns import NM
from jaxsparse._sharding import partition_contraction
from jaxsparse.kernels import cuda_target
from jaxsparse.kernels.export import kernel_on_gpu


LIBRARY = "nm_matmul_bytes"


# `jit` caches the functions that are created here, and their compilation.
@partial(jax.jit, static_argnames="exported")
def cuda_matmuls_bytes(
    x: Float[Array, "... k"], weights: list[Compressed], *, exported: bool
) -> list[Array]:
    """Multiplies on a GPU of compute capability 9.0, or by XLA on other devices.

    Args:
      x: `[..., k]`, for which `unsupported_reason` is empty.
      weights: weights of shapes `[k, out]`, at most `cuda_matmul.MAX_WEIGHTS`, all
        quantized to the same dtype.
      exported: whether a program that is exported uses the kernels too, which must then
        be registered wherever it runs.

    Returns:
      For each weight `[..., out]`, rounded once. If `k` is sharded, the partial sum of
      each device is rounded too. Sums of int8 are exact. Those of more than a few rows
      of float8 are made in tensor cores that keep 14 bits of the largest term (measured
      by DeepSeek-V3, arXiv 2412.19437).
    """
    return _multiply(exported, 0, x, *_arrays(weights))


def multiply_rows(
    rows: Array,
    row_scales: Float[Array, "... 1"],
    weights: Sequence[Compressed],
    dtype: DTypeLike,
    *,
    stack: int = 0,
    exported: bool = False,
) -> list[Array]:
    """Multiplies rows that are quantized. `jax.vmap` of it fails.

    Args:
      rows: `[..., k]`, of the dtype of the weights' values, or a few of them widened to
        that of the results.
      row_scales: of the rows.
      weights: as of `cuda_matmuls_bytes`.
      dtype: of the results.
      stack: the number of leading axes of all arrays that stack weights, with the rows
        of each.
      exported: as of `cuda_matmuls_bytes`.
    """
    first = " ".join(f"s{i}" for i in range(stack))
    axes = f"{first} {' '.join(f'r{i}' for i in range(rows.ndim - 1 - stack))}"
    rules, contracted = [f"{axes} k", f"{axes} row"], ["k"]
    for i in range(len(weights)):
        own = f"values{i} out{i}", f"indices{i} out{i}", f"one out{i}"
        rules += [f"{first} {axes_of}" for axes_of in own]
        contracted += [f"values{i}", f"indices{i}"]
    results = ", ".join(f"{axes} out{i}" for i in range(len(weights)))
    multiply = partition_contraction(
        partial(_multiply_shard, exported, stack, dtype),
        f"{', '.join(rules)} -> {results}",
        contracted,
    )
    return multiply(rows, row_scales, *_arrays(weights))


def _multiply(exported: bool, stack: int, *operands: ArrayLike) -> list[Array]:
    """Quantizes rows and multiplies by values, indices and scales of weights."""
    multiply = custom_vmap(partial(_quantize_and_multiply, exported, stack))
    multiply.def_vmap(partial(_multiply_batch, exported, stack))
    return multiply(*operands)


def _quantize_and_multiply(
    exported: bool, stack: int, x: Array, *arrays: Array
) -> list[Array]:
    weights, dtype = _weights(x.dtype, arrays), arrays[0].dtype
    has_few = not cuda_target.unavailable(kernel_support.library_of(NM(2, 4)))
    # The other kernel's sums of few rows are those of XLA; those of int8 must be exact.
    is_few = math.prod(x.shape[stack:-1]) <= FEW_ROWS and dtype != jnp.int8
    options = {"widened": has_few and is_few, "exported": exported}
    rows, row_scales = cuda_quantize_rows(x, dtype, **options)
    multiply = partial(multiply_rows, stack=stack, exported=exported)
    return multiply(rows, row_scales, weights, x.dtype)


def _arrays(weights: Sequence[Compressed]) -> list[Any]:
    """Returns values, indices and scales of each weight, one after the other."""
    return [a for w in weights for a in (w.values, w.indices, w.scales)]


def _weights(dtype: DTypeLike, arrays: Sequence[Array]) -> list[Compressed]:
    """Returns the weights of such arrays."""
    each = zip(arrays[::3], arrays[1::3], arrays[2::3], strict=True)
    return [
        Compressed(values, indices, NM(2, 4), -2, scales, jnp.dtype(dtype))
        for values, indices, scales in each
    ]


def _multiply_batch(
    exported: bool, stack: int, size: int, batched: list[bool], *operands: ArrayLike
) -> tuple[list[Array], list[bool]]:
    x, *arrays = map(jnp.asarray, operands)

    def multiply(
        stack: int, rows: Array, weights: Sequence[Sequence[Array]]
    ) -> list[Array]:
        return _multiply(exported, stack, rows, *itertools.chain(*weights))

    weights = [arrays[i : i + 3] for i in range(0, len(arrays), 3)]
    return multiply_batch(multiply, stack, size, x, weights, batched)


def _multiply_shard(
    exported: bool,
    stack: int,
    dtype: DTypeLike,
    rows: Array,
    row_scales: Array,
    *arrays: Array,
) -> list[Array]:
    first, inner, k = rows.shape[:stack], rows.shape[stack:-1], rows.shape[-1]
    size, count = math.prod(first), math.prod(inner)
    merged = (size,) if stack else ()
    outs = [array.shape[-1] for array in arrays[::3]]
    by_xla = partial(_multiply_by_xla, dtype)
    multiply = by_xla = jax.vmap(by_xla) if stack else by_xla
    if exported:  # and so asked for
        kernel_support.require_size(size, count, k, outs)
    if kernel_support.fits(size, count, k, outs):
        kernel = partial(_multiply_by_kernel, dtype)
        multiply = partial(kernel_on_gpu, kernel, by_xla, exported=exported)
    products = multiply(
        rows.reshape(*merged, count, k),
        row_scales.reshape(*merged, count, 1),
        *(array.reshape(*merged, *array.shape[stack:]) for array in arrays),
    )
    shapes = [(*first, *inner, out) for out in outs]
    return [y.reshape(shape) for y, shape in zip(products, shapes, strict=True)]


def _multiply_by_xla(
    dtype: DTypeLike, rows: Array, row_scales: Array, *arrays: Array
) -> list[Array]:
    multiply = partial(multiply_quantized_rows, rows, row_scales)
    return [multiply(weight).astype(dtype) for weight in _weights(dtype, arrays)]


def _multiply_by_kernel(
    dtype: DTypeLike, rows: Array, row_scales: Array, *arrays: Array
) -> list[Array]:
    weights = [arrays[i : i + 3] for i in range(0, len(arrays), 3)]
    outs = [weight[0].shape[-1] for weight in weights]
    *stack, count, k = rows.shape
    options = {"stack": math.prod(stack)}
    if rows.dtype == dtype:
        choice = choose_kernel(count, k, *outs, eight_bits=True, **options)
        flags = {"scaled": True, "scaled_rows": True}
        library = kernel_support.library_of(NM(2, 4))
        return launch(library, choice, dtype, rows, weights, row_scales, **flags)
    if k % 16:  # rows are moved by 16 bytes
        rows = jnp.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, -k % 16)])
    tile = choose_tile(count, k, *outs, **options)
    return launch(LIBRARY, tile, dtype, rows, weights, row_scales)
