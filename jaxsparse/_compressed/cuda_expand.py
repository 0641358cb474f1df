"""Products with 4:8 and 8:16 weights for few rows on NVIDIA's Hopper GPUs.

The kernel reads the compressed weight and expands it in registers, as
`kernels/nm_expand.cuh` explains. Under `vmap`, batches of `x` become more rows, and
stacked weights are multiplied one after the other. Over automatic axes of a mesh each
device multiplies its own shards.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxsparse._compressed import cuda_matmul
from jaxsparse._compressed.compressed_array import Compressed
from jaxsparse._compressed.xla_matmul import xla_matmul
from jaxsparse._patterns import NM
from jaxsparse._sharding import partition_contraction
from jaxsparse.kernels import cuda_target
from jaxsparse.kernels.export import unless_exported


_KERNEL = "nm_expand"

PATTERNS = (NM(4, 8), NM(8, 16))

#: For more rows it is faster to decompress the weight by XLA.
MAX_ROWS = 64


def unsupported_reason(x: Array, compressed: Compressed) -> str:
    """Returns why the kernel cannot compute the product, or an empty string."""
    if compressed.is_quantized:
        return f"the weight is {compressed.pattern} and quantized"
    if compressed.shape[0] % 16:
        return f"the weight's k of {compressed.shape[0]} is not a multiple of 16"
    return cuda_matmul.unsupported_reason(x, compressed, _KERNEL, PATTERNS)


# `jit` caches the functions that are created here, and their compilation.
@partial(jax.jit, static_argnames="forced")
def cuda_expand(x: Array, compressed: Compressed, *, forced: bool) -> Array:
    """Multiplies on a GPU of compute capability 9.0, or by XLA on other devices.

    Args:
      x: `[..., k]`, for which `unsupported_reason` is empty.
      compressed: a 4:8 or 8:16 weight of shape `[k, out]` and of the same dtype.
      forced: whether the kernel also multiplies more than `MAX_ROWS` rows, and in a
        program that is exported, where it must then be registered.

    Returns:
      `[..., out]`, accumulated in float32 and rounded once. If `k` is sharded, the
      partial sum of each device is rounded too.
    """
    m, (k, out) = compressed.pattern.m, compressed.shape
    by_group = compressed.indices.reshape(k // m, m // 8, out)  # shards cut no group
    return _multiply(forced, compressed.pattern, x, compressed.values, by_group)


class TileChoice(NamedTuple):
    """The rows of a tile, and how many blocks split its `k`."""

    tile_rows: int
    blocks: int


#: By the rows of a tile: its outputs, and the blocks that fit on a multiprocessor.
_TILES = {8: (128, 3), 16: (128, 3), 32: (256, 2), 64: (256, 1)}

#: By the blocks of a cluster, how many clusters an H100 runs at once, if each of its
#: multiprocessors has room for one block.
_MAX_CLUSTERS = {8: 14, 4: 30, 2: 64}


def choose_tile(rows: int, k: int, out: int) -> TileChoice:
    """Returns the tile for `[rows, k]` by `[k, out]` on 132 multiprocessors.

    The time is that of reading the weight, which all multiprocessors must do at once,
    so as many blocks share a tile as can run at once, two on each multiprocessor.
    """
    tile_rows = next((size for size in _TILES if rows <= size), max(_TILES))
    tile_out, resident = _TILES[tile_rows]
    tiles = -(-rows // tile_rows) * -(-out // tile_out)
    for blocks, clusters in _MAX_CLUSTERS.items():
        few = tiles <= clusters * resident and tiles * blocks <= 2 * 132
        if few and k >= 256 * blocks:
            return TileChoice(tile_rows, blocks)
    return TileChoice(tile_rows, 1)


def _multiply(forced: bool, pattern: NM, *operands: ArrayLike) -> Array:
    """Multiplies rows by the values and masks of a weight."""
    axes = " ".join(f"r{i}" for i in range(jnp.ndim(operands[0]) - 1))
    rule = f"{axes} k, values out, groups bytes out -> {axes} out"
    multiply_shard = partial(_multiply_shard, forced, pattern)
    multiply = custom_vmap(
        partition_contraction(multiply_shard, rule, ("k", "values", "groups"))
    )
    multiply.def_vmap(partial(_multiply_batch, forced, pattern))
    return multiply(*operands)


def _multiply_batch(
    forced: bool, pattern: NM, size: int, batched: list[bool], *arrays: ArrayLike
) -> tuple[Array, bool]:
    operands = [*map(jnp.asarray, arrays)]
    if not any(batched[1:]):
        return _multiply(forced, pattern, *operands), True

    def multiply_one(i: Array) -> Array:  # operands that are not batched are not copied
        own = [
            lax.dynamic_index_in_dim(array, i, 0, False) if is_batched else array
            for array, is_batched in zip(operands, batched, strict=True)
        ]
        return _multiply(forced, pattern, *own)

    return lax.map(multiply_one, jnp.arange(size)), True


def _multiply_shard(
    forced: bool, pattern: NM, x: Array, values: Array, masks: Array
) -> Array:
    rows, out = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), values.shape[-1]
    # Unlike whole arrays, shards may have any size, and vmap adds rows.
    suits = (
        rows.shape[1] % 16 == 0
        and out % 16 == 0
        and rows.size
        and out
        and len(rows) < cuda_matmul.MAX_SIZE
    )
    suits = suits and (forced or len(rows) <= MAX_ROWS)
    by_xla, kernel = partial(_multiply_by_xla, pattern), _multiply_by_kernel
    if not forced:
        kernel = partial(unless_exported, kernel, by_xla)
    product = lax.platform_dependent(
        rows,
        values,
        masks.reshape(-1, out),
        cuda=kernel if suits else by_xla,
        default=by_xla,
    )
    return product.reshape(*x.shape[:-1], out)


def _multiply_by_xla(pattern: NM, x: Array, values: Array, masks: Array) -> Array:
    return xla_matmul(x, Compressed(values, masks, pattern, -2))


def _multiply_by_kernel(x: Array, values: Array, masks: Array) -> Array:
    (rows, k), out = x.shape, values.shape[1]
    tile = choose_tile(rows, k, out)
    name = cuda_target.target(_KERNEL)
    multiply = jax.ffi.ffi_call(name, jax.ShapeDtypeStruct((rows, out), x.dtype))
    sizes = {name: np.int64(size) for name, size in tile._asdict().items()}
    return multiply(x, values, masks, **sizes)
