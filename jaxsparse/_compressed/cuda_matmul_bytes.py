"""Products of quantized rows and 2:4 weights of eight bits on Hopper's tensor cores.

`kernels/nm_matmul_bytes.cuh` explains the kernel. Rows are quantized by another before,
as `quantized_rows_matmul` does it. Under `vmap`, batches of rows become more rows, and
stacked weights are multiplied one after the other. Over automatic axes of a mesh each
device multiplies its own shards; scales of rows are those of whole rows.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from jaxsparse._compressed import kernel_support
from jaxsparse._compressed.compressed_array import Compressed
from jaxsparse._compressed.cuda_quantize_rows import cuda_quantize_rows
from jaxsparse._compressed.kernel_choice import MAX_CLUSTERS
from jaxsparse._compressed.quantized_matmul import multiply_quantized_rows
from jaxsparse._patterns import NM
from jaxsparse._sharding import partition_contraction
from jaxsparse.kernels import cuda_target
from jaxsparse.kernels.export import unless_exported


LIBRARY = "nm_matmul_bytes"


@partial(jax.jit, static_argnames="exported")
def cuda_matmul_bytes(
    x: Float[Array, "... k"], compressed: Compressed, *, exported: bool
) -> Float[Array, "... out"]:
    """Multiplies on a GPU of compute capability 9.0, or by XLA on other devices.

    Args:
      x: `[..., k]`, for which `unsupported_reason` is empty.
      compressed: a quantized weight of shape `[k, out]`.
      exported: whether a program that is exported uses the kernel too, which must then
        be registered wherever it runs.

    Returns:
      `[..., out]`, rounded once. If `k` is sharded, the partial sum of each device is
      rounded too. Sums of int8 are exact. Those of float8 are made in tensor cores that
      keep 14 bits of the largest term (measured by DeepSeek-V3, arXiv 2412.19437).
    """
    dtype = compressed.values.dtype
    rows, row_scales = cuda_quantize_rows(x, dtype, exported=exported)
    return multiply_rows(rows, row_scales, compressed, x.dtype, exported=exported)


def multiply_rows(
    rows: Array,
    row_scales: Float[Array, "... 1"],
    compressed: Compressed,
    dtype: DTypeLike,
    *,
    exported: bool = False,
) -> Float[Array, "... out"]:
    """Multiplies rows that are quantized.

    Args:
      rows: `[..., k]`, of the dtype of the weight's values.
      row_scales: of the rows.
      compressed: a quantized weight of shape `[k, out]`.
      dtype: of the result.
      exported: as of `cuda_matmul_bytes`.
    """
    assert compressed.scales is not None
    weight = compressed.values, compressed.indices, compressed.scales
    return _multiply(exported, dtype, rows, row_scales, *weight)


class TileChoice(NamedTuple):
    """The rows of `x` in a tile of 128 outputs, and how many blocks work together.

    Two blocks of 256 rows share what they read of them; blocks of fewer rows have the
    same tile, and slices of `k`.
    """

    tile_rows: int
    blocks: int


#: What `kernels/nm_matmul_bytes.cu` compiles.
TILES = (
    *(TileChoice(rows, blocks) for rows in (32, 64) for blocks in (1, 2, 4)),
    *(TileChoice(128, 1), TileChoice(256, 1), TileChoice(256, 2)),
)


def choose_tile(rows: int, out: int) -> TileChoice:
    """Returns the tile for `[rows, k]` by `[k, out]` on 132 multiprocessors.

    The larger a tile, the less is read for its work; but all multiprocessors must have
    one, or a slice of one.
    """
    out_tiles = -(-out // 128)
    for tile_rows in (256, 128):
        tiles = out_tiles * -(-rows // tile_rows)
        if rows > tile_rows // 2 and tiles >= 100:
            # A tile without a neighbour leaves the second block idle.
            paired = tile_rows == 256 and 20 * (out_tiles % 2) <= out_tiles
            return TileChoice(tile_rows, 2 if paired else 1)
    tile_rows = 32 if rows <= 32 else 64
    tiles = out_tiles * -(-rows // tile_rows)
    if tiles > 132 and rows > 64:
        return TileChoice(128, 1)
    # More clusters than run at once would take twice as long.
    blocks = next((n for n in (4, 2) if tiles <= MAX_CLUSTERS[n]), 1)
    return TileChoice(tile_rows, blocks)


def _multiply(exported: bool, dtype: DTypeLike, *operands: ArrayLike) -> Array:
    """Multiplies rows and their scales by values, indices and scales of a weight."""
    axes = " ".join(f"r{i}" for i in range(jnp.ndim(operands[0]) - 1))
    rule = f"{axes} k, {axes} row, values out, indices out, one out -> {axes} out"
    multiply_shard = partial(_multiply_shard, exported, dtype)
    multiply = custom_vmap(
        partition_contraction(multiply_shard, rule, ("k", "values", "indices"))
    )
    multiply.def_vmap(partial(_multiply_batch, exported, dtype))
    return multiply(*operands)


def _multiply_batch(
    exported: bool,
    dtype: DTypeLike,
    size: int,
    batched: list[bool],
    *arrays: ArrayLike,
) -> tuple[Array, bool]:
    operands = [*map(jnp.asarray, arrays)]
    if all(batched[:2]) and not any(batched[2:]):
        return _multiply(exported, dtype, *operands), True

    def multiply_one(i: Array) -> Array:  # operands that are not batched are not copied
        own = [
            lax.dynamic_index_in_dim(array, i, 0, False) if is_batched else array
            for array, is_batched in zip(operands, batched, strict=True)
        ]
        return _multiply(exported, dtype, *own)

    return lax.map(multiply_one, jnp.arange(size)), True


def _multiply_shard(
    exported: bool, dtype: DTypeLike, rows: Array, row_scales: Array, *weight: Array
) -> Array:
    *leading, k = rows.shape
    count, out = math.prod(leading), weight[0].shape[-1]
    # Unlike whole arrays, shards may have any size, and vmap adds rows.
    suits = out % 16 == 0 and rows.size and out and count < kernel_support.MAX_SIZE
    by_xla = partial(_multiply_by_xla, dtype)
    kernel = partial(_multiply_by_kernel, dtype)
    if not exported:
        kernel = partial(unless_exported, kernel, by_xla)
    product = lax.platform_dependent(
        rows.reshape(count, k),
        row_scales.reshape(count, 1),
        *weight,
        cuda=kernel if suits else by_xla,
        default=by_xla,
    )
    return product.reshape(*leading, out)


def _multiply_by_xla(
    dtype: DTypeLike,
    rows: Array,
    row_scales: Array,
    values: Array,
    indices: Array,
    scales: Array,
) -> Array:
    weight = Compressed(values, indices, NM(2, 4), -2, scales, jnp.dtype(dtype))
    return multiply_quantized_rows(rows, row_scales, weight).astype(dtype)


def _multiply_by_kernel(
    dtype: DTypeLike,
    rows: Array,
    row_scales: Array,
    values: Array,
    indices: Array,
    scales: Array,
) -> Array:
    (count, k), out = rows.shape, values.shape[1]
    tile = choose_tile(count, out)
    if k % 16:  # rows are moved by 16 bytes
        rows = jnp.pad(rows, ((0, 0), (0, -k % 16)))
    name = cuda_target.target(LIBRARY)
    multiply = jax.ffi.ffi_call(name, jax.ShapeDtypeStruct((count, out), dtype))
    return multiply(
        rows,
        values,
        indices,
        row_scales,
        scales,
        tile_rows=np.int64(tile.tile_rows),
        blocks=np.int64(tile.blocks),
    )
