"""Products with 2:4 weights on the sparse tensor cores of NVIDIA's Hopper GPUs.

`choose_kernel` selects the kernel and its tiles; `kernels/*.cuh` explain how they work.
Under `vmap`, batches of `x` become more rows, and stacked weights are multiplied one
after the other. Over automatic axes of a mesh each device multiplies its own shards.
Values of eight bits are widened in registers for few rows, otherwise by XLA before.
"""

import math
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxsparse._compressed.compressed_array import Compressed
from jaxsparse._compressed.quantized_matmul import weight_only_matmul
from jaxsparse._compressed.xla_matmul import xla_matmul
from jaxsparse._patterns import NM
from jaxsparse._sharding import is_automatic, partition_contraction
from jaxsparse.kernels import cuda_target
from jaxsparse.kernels.export import unless_exported


_KERNEL = "nm_matmul"

#: The kernel counts in 32 bits; smaller sizes fit even when rounded up to whole tiles.
MAX_SIZE = 2**31 - 2**16


def unsupported_reason(
    x: Array,
    compressed: Compressed,
    kernel: str = _KERNEL,
    patterns: tuple[NM, ...] = (NM(2, 4),),
) -> str:
    """Returns why a kernel cannot compute the product, or an empty string."""
    k, out = compressed.shape
    if compressed.is_quantized and compressed.scales.shape[0] != 1:
        return f"the weight has scales of shape {compressed.scales.shape}, not (1, out)"
    if compressed.pattern not in patterns:
        return f"the pattern is {compressed.pattern}, not 2:4"
    if x.dtype not in (jnp.bfloat16, jnp.float16):
        return f"the dtype is {x.dtype}, not bfloat16 or float16"
    if not all(isinstance(size, int) for size in (*x.shape, k, out)):
        return "a size is symbolic"
    if max(math.prod(x.shape[:-1]), k, out) >= MAX_SIZE:
        return f"the kernel counts in 32 bits, but x has shape {x.shape}"
    if k % 8 or out % 16:
        return f"the weight's sizes {(k, out)} are not multiples of 8 and 16"
    if not (is_automatic(x) and is_automatic(compressed.values)):
        return "a mesh has axes that are not automatic"
    return cuda_target.unavailable(kernel)


# `jit` caches the functions that are created here, and their compilation.
@partial(jax.jit, static_argnames="exported")
def cuda_matmul(x: Array, compressed: Compressed, *, exported: bool) -> Array:
    """Multiplies on a GPU of compute capability 9.0, or by XLA on other devices.

    Args:
      x: `[..., k]`, for which `unsupported_reason` is empty.
      compressed: a weight of shape `[k, out]` and of the same dtype, or quantized.
      exported: whether a program that is exported uses the kernel too, which must then
        be registered wherever it runs.

    Returns:
      `[..., out]`, accumulated in float32 and rounded once. If `k` is sharded, the
      partial sum of each device is rounded too.
    """
    axes = " ".join(f"r{i}" for i in range(x.ndim - 1))
    operands = [compressed.values, compressed.indices]
    rule = f"{axes} k, values out, indices out"
    if compressed.is_quantized:
        operands.append(compressed.scales)
        rule += ", one out"
    rule += f" -> {axes} out"
    multiply_shard = partial(_multiply_shard, exported)
    multiply = custom_vmap(
        partition_contraction(multiply_shard, rule, ("k", "values", "indices"))
    )
    multiply.def_vmap(partial(_multiply_batch, exported))
    return multiply(x, *operands)


class KernelChoice(NamedTuple):
    """A kernel and its launch parameters.

    Attributes:
      kernel: `"few"` for few rows, otherwise `"split"` or `"whole"`. In `"few"` and
        `"split"` the blocks of a cluster split the `k` of one tile. In `"whole"` each
        block has tiles of its own, and the blocks share what they read.
      tile_rows: the rows of `x` in a tile.
      blocks: the blocks of a cluster.
    """

    kernel: Literal["few", "split", "whole"]
    tile_rows: int
    blocks: int


#: By the blocks of a cluster, how many clusters an H100 runs at once with each block on
#: its own multiprocessor. A GPU that runs fewer takes longer; the results are the same.
_MAX_CLUSTERS = {4: 30, 3: 40, 2: 66}


#: The most rows of kernel `"few"`. It is the only one that reads eight bits.
_FEW_ROWS, _FEW_ROWS_OF_EIGHT_BITS = 16, 48


def choose_kernel(
    rows: int, k: int, out: int, *, eight_bits: bool = False
) -> KernelChoice:
    """Returns the kernel for `[rows, k]` by `[k, out]` on 132 multiprocessors.

    With few rows, the time is that of reading the weight. All multiprocessors must then
    read, so several blocks share a tile as long as each has its own multiprocessor.
    With many rows, tiles of 256 by 128 need the least time for their work, if there are
    enough of them. If there are more tiles than multiprocessors, the cache is the
    limit, so two blocks share what they read. Values of eight bits are read once for
    each 16 rows, up to where that takes about as long as to widen them for the other
    kernels. Measured by `benchmarks.nm_matmul` on an H100, eight bits on an H200.
    """

    def count_tiles(tile_rows: int, tile_out: int) -> int:
        return -(-rows // tile_rows) * -(-out // tile_out)

    def choose_blocks(tiles: int, min_k: int, candidates: tuple[int, ...]) -> int:
        for blocks in candidates:
            if tiles <= _MAX_CLUSTERS[blocks] and k >= min_k * blocks:
                return blocks
        return 1

    def split(tile_rows: int, tile_out: int) -> KernelChoice:
        blocks = choose_blocks(count_tiles(tile_rows, tile_out), 128, (4, 3, 2))
        return KernelChoice("split", tile_rows, blocks)

    if rows <= (_FEW_ROWS_OF_EIGHT_BITS if eight_bits else _FEW_ROWS):
        blocks = choose_blocks(count_tiles(16, 64), 512, (4, 2))
        return KernelChoice("few", 8 if rows <= 8 else 16, blocks)
    if rows <= 32:
        return split(32, 64)
    if rows <= 128:
        fills_gpu = rows > 64 and count_tiles(128, 128) >= 64
        return KernelChoice("whole", 128, 1) if fills_gpu else split(64, 128)
    tiles = count_tiles(256, 128)
    if tiles >= 100:
        # Neighbours along the outputs share. A tile without a neighbour leaves the
        # second block idle.
        paired = 2 * count_tiles(256, 256) <= 1.05 * tiles
        return KernelChoice("whole", 256, 2 if paired and tiles > 132 else 1)
    # If three blocks for each of the large tiles cannot fill the GPU, halve the tiles.
    return split(256 if tiles > 30 else 128, 128)


def _multiply_batch(
    exported: bool, size: int, batched: list[bool], *arrays: ArrayLike
) -> tuple[Array, bool]:
    operands = [*map(jnp.asarray, arrays)]

    def multiply(x: Array, *weight: Array) -> Array:
        return cuda_matmul(x, _weight(x, *weight), exported=exported)

    if not any(batched[1:]):
        return multiply(*operands), True

    def multiply_one(i: Array) -> Array:  # operands that are not batched are not copied
        own = [
            lax.dynamic_index_in_dim(array, i, 0, False) if is_batched else array
            for array, is_batched in zip(operands, batched, strict=True)
        ]
        return multiply(*own)

    return lax.map(multiply_one, jnp.arange(size)), True


def _multiply_shard(exported: bool, x: Array, *weight: Array) -> Array:
    rows, out = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), weight[0].shape[-1]
    # Unlike whole arrays, shards may have any size, and vmap adds rows.
    suits = out % 16 == 0 and rows.size and out and len(rows) < MAX_SIZE
    kernel = _multiply_by_kernel
    if not exported:
        kernel = partial(unless_exported, kernel, _multiply_by_xla)
    product = lax.platform_dependent(
        rows,
        *weight,
        cuda=kernel if suits else _multiply_by_xla,
        default=_multiply_by_xla,
    )
    return product.reshape(*x.shape[:-1], out)


def _weight(
    x: Array, values: Array, indices: Array, scales: Array | None = None
) -> Compressed:
    dtype = None if scales is None else x.dtype
    return Compressed(values, indices, NM(2, 4), -2, scales, dtype)


def _multiply_by_xla(x: Array, *weight: Array) -> Array:
    compressed = _weight(x, *weight)
    multiply = weight_only_matmul if compressed.is_quantized else xla_matmul
    return multiply(x, compressed)


def _multiply_by_kernel(
    x: Array, values: Array, indices: Array, *scales: Array
) -> Array:
    (rows, k), out = x.shape, values.shape[1]
    kernel, tile_rows, blocks = choose_kernel(rows, k, out, eight_bits=bool(scales))
    if kernel != "few":
        values = values.astype(x.dtype)  # exact
    name = cuda_target.target(_KERNEL)
    multiply = jax.ffi.ffi_call(name, jax.ShapeDtypeStruct((rows, out), x.dtype))
    return multiply(
        x,
        values,
        indices,
        *scales,
        kernel=kernel,
        tile_rows=np.int64(tile_rows),
        blocks=np.int64(blocks),
    )
