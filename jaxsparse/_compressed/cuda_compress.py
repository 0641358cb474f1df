"""2:4 forms of a weight by a kernel for NVIDIA's Hopper GPUs, in one pass.

`kernels/compress_both.cuh` explains how it works. Under `vmap` and for stacks all
matrices are one launch. Over automatic axes of a mesh each device compresses its own
shards.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from jaxsparse._patterns import NM, pack_mask, packed_axis, unpack_mask
from jaxsparse._sharding import is_automatic, partition_groups
from jaxsparse.kernels import cuda_target
from jaxsparse.kernels.export import kernel_on_gpu


_KERNEL = "compress_both"

#: Which weights are kept: those of a mask packed along -2 or -1, those that are not
#: zero, two of each group along -2, or the best transposable mask of blocks with rows
#: along -2 or -1, which is returned, too, packed along that axis. "best_relus" is
#: "best" of the ReLUs of what is given, of which the squares are kept.
Source = Literal[
    "along_k",
    "along_out",
    "nonzero",
    "magnitude",
    "best",
    "best_along_out",
    "best_relus",
]

#: A grid of blocks has at most as many along the stack, and rows of tiles.
_MAX_BLOCKS = 2**16 - 1
_TILE_ROWS = 64


def unsupported_reason(w: Array, pattern: NM, dtype: DTypeLike) -> str:
    """Returns why the kernel cannot compress a weight, or an empty string.

    Args:
      w: the weight, `[*stack, p, q]`.
      pattern: n:m.
      dtype: the dtype of the values.
    """
    if (pattern.n, pattern.m) != (2, 4):
        return f"the pattern is {pattern}, not 2:4"
    narrow = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    if not narrow or w.dtype not in (jnp.float32, dtype):
        return f"the dtypes are {w.dtype} and {dtype}"
    if not all(isinstance(size, int) for size in w.shape):
        return "a size is symbolic"
    if not _suits(w.shape):
        return f"the shape is {w.shape}"
    if not is_automatic(w):
        return "a mesh has axes that are not automatic"
    return cuda_target.unavailable(_KERNEL)


def as_packed(mask: Array, shape: Sequence[int]) -> tuple[Source, UInt8[Array, "..."]]:
    """Returns the source for a given mask of matrices, and the mask packed for it."""
    axis = None if mask.dtype == jnp.bool_ else packed_axis(mask.shape, tuple(shape))
    if axis == len(shape) - 1:
        return "along_out", mask
    if axis != len(shape) - 2:
        mask = pack_mask(unpack_mask(mask, tuple(shape)), len(shape) - 2)
    return "along_k", mask


def _suits(shape: Sequence[int]) -> bool:
    *stack, p, q = shape
    fits = max(math.prod(stack), -(-p // _TILE_ROWS)) <= _MAX_BLOCKS and q < 2**31
    return p % 8 == 0 and q % 8 == 0 and math.prod(shape) > 0 and fits


def cuda_compress(
    by_xla: Callable[..., tuple[Array, ...]],
    source: Source,
    dtype: DTypeLike,
    axes: Sequence[int],
    w: Float[Array, "*stack p q"],
    *mask: UInt8[Array, "..."],
    kept: bool = False,
) -> tuple[Array, ...]:
    """Compresses on a GPU of compute capability 9.0, or by XLA on other devices.

    Args:
      by_xla: what computes the results elsewhere: a function of `w` and the mask, or of
        shards of them, with one stack axis.
      source: which weights are kept.
      dtype: the dtype of the values.
      axes: -2 for the form of the matrices, -1 for that of their transposes, in this
        order.
      w: the weight, for which `unsupported_reason` is empty.
      *mask: the packed mask, if it is given.
      kept: whether to return what a searched mask keeps, too.

    Returns:
      For each axis the values, `[*stack, p / 2, q]` or `[*stack, q / 2, p]`, and the
      indices, `[*stack, p / 8, q]` or `[*stack, q / 8, p]`; then the mask, if it is
      searched; and last, if wanted, `[*stack, p, q]` with zeros.
    """
    *stack, p, q = w.shape
    stacked = [x.reshape(-1, *x.shape[len(stack) :]) for x in (w, *mask)]
    compress_stack = partial(_compress_shard, by_xla, source, dtype, axes, kept)
    compress = custom_vmap(
        partition_groups(
            compress_stack,
            _rule(source, axes, kept),
            p8=p // 8,
            q8=q // 8,
            **dict.fromkeys(("p_in_8", "q_in_8"), 8),
            **dict.fromkeys(("p_in_4", "q_in_4"), 4),
        )
    )

    def compress_batch(size: int, batched: list[bool], *arrays: Any):
        whole = [
            x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
            for x, is_batched in zip(arrays, batched, strict=True)
        ]
        results = cuda_compress(by_xla, source, dtype, axes, *whole, kept=kept)
        return results, (True,) * len(results)

    compress.def_vmap(compress_batch)
    return tuple(x.reshape(*stack, *x.shape[1:]) for x in compress(*stacked))


def _rule(source: Source, axes: Sequence[int], kept: bool) -> str:
    """Returns the Shardy rule of a compression."""
    forms = {
        -2: "stack (p8 p_in_4) (q8 q_in_8), stack p8 (q8 q_in_8)",
        -1: "stack (q8 q_in_4) (p8 p_in_8), stack q8 (p8 p_in_8)",
    }
    masks = {"along_k": "stack p8 (q8 q_in_8)", "along_out": "stack (p8 p_in_8) q8"}
    found = {"best": masks["along_k"], "best_along_out": masks["along_out"]}
    found["best_relus"] = found["best"]
    whole = "stack (p8 p_in_8) (q8 q_in_8)"
    operands = [whole, *_one(masks, source)]
    results = [*(forms[axis] for axis in axes), *_one(found, source), *[whole] * kept]
    return f"{', '.join(operands)} -> {', '.join(results)}"


def _one(choices: dict[str, str], name: str) -> list[str]:
    return [choices[name]] if name in choices else []


def _compress_shard(
    by_xla: Callable[..., tuple[Array, ...]],
    source: Source,
    dtype: DTypeLike,
    axes: Sequence[int],
    kept: bool,
    w: Array,
    *mask: Array,
) -> tuple[Array, ...]:
    # Unlike whole arrays, shards may have any size.
    if not _suits(w.shape):
        return by_xla(w, *mask)
    kernel = partial(_compress_by_kernel, source, dtype, axes, kept)
    return kernel_on_gpu(kernel, by_xla, w, *mask)


def _compress_by_kernel(
    source: Source,
    dtype: DTypeLike,
    axes: Sequence[int],
    kept: bool,
    w: Array,
    *mask: Array,
) -> tuple[Array, ...]:
    stack, p, q = w.shape
    shapes = []
    for axis in axes:
        k, out = (p, q) if axis == -2 else (q, p)
        shapes.append(jax.ShapeDtypeStruct((stack, k // 2, out), dtype))
        shapes.append(jax.ShapeDtypeStruct((stack, k // 8, out), jnp.uint8))
    if source in ("best", "best_relus"):
        shapes.append(jax.ShapeDtypeStruct((stack, p // 8, q), jnp.uint8))
    elif source == "best_along_out":
        shapes.append(jax.ShapeDtypeStruct((stack, p, q // 8), jnp.uint8))
    if kept:
        shapes.append(jax.ShapeDtypeStruct(w.shape, dtype))
    compress = jax.ffi.ffi_call(cuda_target.target(_KERNEL), shapes)
    wanted = {"along_k": -2 in axes, "along_out": -1 in axes}
    return tuple(compress(w, *mask, source=source, **wanted))
