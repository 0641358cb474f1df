"""Rows to eight bits by a kernel for NVIDIA's Hopper GPUs, in one pass.

`kernels/quantize_rows.cuh` explains the kernel. Over automatic axes of a mesh each
device quantizes its own rows; where rows are sharded themselves, XLA does, by the
largest magnitudes of whole rows.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxsparse._compressed.kernel_support import MAX_SIZE
from jaxsparse._compressed.quantized_matmul import quantize_rows
from jaxsparse._sharding import partition_rows
from jaxsparse.kernels import cuda_target
from jaxsparse.kernels.export import kernel_on_gpu


LIBRARY = "quantize_rows"

#: What a thread loads at once, and how many of these it can hold.
_VECTOR, _MAX_VECTORS = 8, 8
_MAX_THREADS = 1024


def cuda_quantize_rows(
    x: Float[Array, "... k"],
    dtype: DTypeLike,
    *,
    widened: bool = False,
    exported: bool = False,
) -> tuple[Array, Float[Array, "... 1"]]:
    """Quantizes on a GPU of compute capability 9.0, or by XLA on other devices.

    The kernel divides exactly, as CPUs do. XLA's scales on a GPU may differ from that
    in the last bits, and the rounding of a number with them. `jax.vmap` of it fails.

    Args:
      x: `[..., k]`, of bfloat16 or float16.
      dtype: int8 or float8_e4m3fn.
      widened: whether to return numbers of float8 in the dtype of `x`, which holds
        them.
      exported: whether a program that is exported uses the kernel too, which must then
        be registered wherever it runs.

    Returns:
      As `quantize_rows`: the rows, and their scales in float32.
    """
    quantize = partial(_quantize_shard, dtype, x.dtype if widened else dtype, exported)
    return partition_rows(quantize, x.ndim)(x)


def choose_threads(k: int) -> int:
    """Returns the threads of a block, which has one row.

    On an H200, other numbers are not faster, for one row or for thousands.
    """
    vectors = -(-k // _VECTOR)
    threads = max(min(vectors, 256), -(-vectors // _MAX_VECTORS))
    return -(-threads // 32) * 32


def _quantize_shard(
    dtype: DTypeLike,
    result: DTypeLike,
    exported: bool,
    mesh_axes: tuple[str, ...],
    x: Array,
) -> tuple[Array, Array]:
    def by_xla(x: Array) -> tuple[Array, Array]:
        rows, scales = quantize_rows(x, dtype, mesh_axes)
        return rows.astype(result), scales

    *leading, k = x.shape
    count = math.prod(leading)
    # Unlike whole arrays, shards may have any size.
    fits = x.size and k <= _VECTOR * _MAX_VECTORS * _MAX_THREADS and count < MAX_SIZE
    if mesh_axes or not fits or k % _VECTOR or cuda_target.unavailable(LIBRARY):
        return by_xla(x)
    kernel = partial(_quantize_by_kernel, result)
    rows, scales = kernel_on_gpu(kernel, by_xla, x.reshape(count, k), exported=exported)
    return rows.reshape(x.shape), scales.reshape(*leading, 1)


def _quantize_by_kernel(result: DTypeLike, x: Array) -> tuple[Array, Array]:
    count, k = x.shape
    shapes = (
        jax.ShapeDtypeStruct((count, k), result),
        jax.ShapeDtypeStruct((count, 1), jnp.float32),
    )
    quantize = jax.ffi.ffi_call(cuda_target.target(LIBRARY), shapes)
    rows, scales = quantize(x, threads=np.int64(choose_threads(k)))
    return rows, scales
