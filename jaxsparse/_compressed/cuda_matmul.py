"""Products with 2:4 weights on the sparse tensor cores of NVIDIA's Hopper GPUs.

Which kernel and which tiles, see `choose_kernel`; how they work, see `kernels/*.cuh`.
Under `vmap` rows become more rows, stacked weights are taken one after the other; over
automatic axes of a mesh each device multiplies what it has.
"""

import functools
import logging
import math
import warnings
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxsparse._compressed.compressed_array import Compressed, decompress
from jaxsparse._compressed.xla_matmul import wide_dot
from jaxsparse._patterns import NM
from jaxsparse._sharding import is_automatic, partition_contraction
from jaxsparse.kernels.device import compute_capability


_TARGET = "jaxsparse_nm_matmul"
COUNTED = 2**31 - 2**16  # sizes below it fit the kernel's 32 bits, rounded up to tiles


def unsupported_reason(x: Array, compressed: Compressed) -> str:
    """What keeps these from the kernel; empty if nothing does."""
    k, out = compressed.shape
    if compressed.pattern != NM(2, 4):
        return f"the pattern is {compressed.pattern}, not 2:4"
    if x.dtype not in (jnp.bfloat16, jnp.float16):
        return f"the dtype is {x.dtype}, neither bfloat16 nor float16"
    if not all(isinstance(size, int) for size in (*x.shape, k, out)):
        return "a size is symbolic"
    if max(math.prod(x.shape[:-1]), k, out) >= COUNTED:
        return f"the kernel counts in 32 bits, x has shape {x.shape}"
    if k % 8 or out % 16:
        return f"the weight's shape is {(k, out)}, not multiples of 8 and 16"
    if not (is_automatic(x) and is_automatic(compressed.values)):
        return "a mesh has axes that are not automatic"
    return _unavailable()


@jax.jit  # so that what is made here, and compiled, is found again
def cuda_matmul(x: Array, compressed: Compressed) -> Array:
    """The product on a device of compute capability 9.0, or by XLA elsewhere.

    Args:
      x: `[..., k]`, for which `unsupported_reason` has no reason.
      compressed: a weight `[k, out]` of the same dtype.

    Returns:
      `[..., out]`, added up in float32 and rounded once; where k is cut over devices,
      the result of each of them is rounded, too.
    """
    axes = " ".join(f"r{i}" for i in range(x.ndim - 1))
    rule = f"{axes} k, values out, indices out -> {axes} out"
    multiply = custom_vmap(
        partition_contraction(_locally, rule, ("k", "values", "indices"))
    )
    multiply.def_vmap(_batched)
    return multiply(x, compressed.values, compressed.indices)


class KernelChoice(NamedTuple):
    """A kernel, the rows of its tiles, and how many blocks work together."""

    kernel: Literal["few", "split", "whole"]
    tile_rows: int
    blocks: int


# How many clusters of so many blocks run at once, each block on its own multiprocessor:
# of the H100 that was measured; where fewer do, they take longer, and nothing else.
CLUSTERS = {4: 30, 3: 40, 2: 66}


def choose_kernel(rows: int, k: int, out: int) -> KernelChoice:
    """How to multiply `[rows, k]` by `[k, out]` on 132 multiprocessors.

    Few rows: reading the weight is what takes time, so all of the GPU has to read, and
    blocks share tiles as long as each has a multiprocessor of its own. Many: a tile of
    256 by 128 is the quickest by its work, if there are enough of them; where they are
    more than one for each multiprocessor, the cache is what limits it, so two share
    what they read. Measured by `benchmarks.nm_matmul` on an H100.
    """

    def count(tile_rows: int, tile_out: int) -> int:
        return -(-rows // tile_rows) * -(-out // tile_out)

    def blocks(tiles: int, least_k: int, *numbers: int) -> int:
        fits = lambda n: tiles <= CLUSTERS[n] and k >= least_k * n
        return next(filter(fits, numbers), 1)

    def split(tile_rows: int, tile_out: int) -> KernelChoice:
        tiles = count(tile_rows, tile_out)
        return KernelChoice("split", tile_rows, blocks(tiles, 128, 4, 3, 2))

    if rows <= 16:
        return KernelChoice(
            "few", 8 if rows <= 8 else 16, blocks(count(16, 64), 512, 4, 2)
        )
    if rows <= 32:
        return split(32, 64)
    if rows <= 128:
        enough = rows > 64 and count(128, 128) >= 64
        return KernelChoice("whole", 128, 1) if enough else split(64, 128)
    if count(256, 128) >= 100:
        # Neighbours along the outputs share; where one has none, it works for nothing.
        paired = 2 * count(256, 256) <= 1.05 * count(256, 128)
        return KernelChoice("whole", 256, 2 if paired and count(256, 128) > 132 else 1)
    # Too few of the large tiles for three blocks each to fill the GPU: twice as many.
    return split(256 if count(256, 128) > 30 else 128, 128)


def _batched(size: int, batched: list[bool], *arrays: ArrayLike):
    x, values, indices = map(jnp.asarray, arrays)
    if not (batched[1] or batched[2]):
        return cuda_matmul(x, _weight(values, indices)), True

    def one(i: Array) -> Array:  # what is not mapped is not copied
        pick = lambda a, mapped: (
            lax.dynamic_index_in_dim(a, i, 0, False) if mapped else a
        )
        x_, values_, indices_ = map(pick, (x, values, indices), batched)
        return cuda_matmul(x_, _weight(values_, indices_))

    return lax.map(one, jnp.arange(size)), True


def _locally(x: Array, values: Array, indices: Array) -> Array:
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    # Shards may be of any size.
    suits = values.shape[-1] % 16 == 0 and rows.size and values.size
    suits = suits and len(rows) < COUNTED  # `vmap` adds rows
    found = lax.platform_dependent(
        rows, values, indices, cuda=_kernel if suits else _by_xla, default=_by_xla
    )
    return found.reshape(*x.shape[:-1], values.shape[-1])


def _by_xla(x: Array, values: Array, indices: Array) -> Array:
    return wide_dot(x, decompress(_weight(values, indices)), [1], [0])


def _weight(values: Array, indices: Array) -> Compressed:
    return Compressed(values, indices, NM(2, 4), -2)


def _kernel(x: Array, values: Array, indices: Array) -> Array:
    (rows, k), out = x.shape, values.shape[1]
    kernel, tile_rows, blocks = choose_kernel(rows, k, out)
    multiply = jax.ffi.ffi_call(_TARGET, jax.ShapeDtypeStruct((rows, out), x.dtype))
    return multiply(
        x,
        values,
        indices,
        kernel=kernel,
        tile_rows=np.int64(tile_rows),
        blocks=np.int64(blocks),
    )


@functools.cache  # so it is said once
def _unavailable() -> str:
    """Registers the kernel, or says why it cannot be."""
    if compute_capability() != (9, 0):
        reason = "the default device is no GPU of compute capability 9.0 (H100, H200)"
        logging.getLogger("jaxsparse").info("nm_matmul is left to XLA: %s", reason)
        return reason
    from jaxsparse.kernels import cuda_library

    try:
        library = cuda_library.load()
    except cuda_library.BuildError as error:
        if jax.process_count() > 1:
            raise  # the others may have it, and all have to run the same program
        warnings.warn(f"nm_matmul is left to XLA: {error}", stacklevel=2)
        return str(error)
    handler = jax.ffi.pycapsule(library.jaxsparse_nm_matmul)
    jax.ffi.register_ffi_target(_TARGET, handler, platform="CUDA")
    return ""
