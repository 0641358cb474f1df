"""Which products Hopper's kernels compute, and why they cannot compute others."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array

from jaxsparse._compressed.compressed_array import Compressed
from jaxsparse._patterns import NM
from jaxsparse._sharding import is_automatic
from jaxsparse.kernels import cuda_target


#: By the n and m of a pattern, the library that has its kernels.
_LIBRARIES = {(2, 4): "nm_matmul", (4, 8): "nm_expand", (8, 16): "nm_expand"}

#: The library for many rows of 16 bits and weights of eight.
MIXED = "nm_matmul_mixed"

#: The kernel counts in 32 bits; smaller sizes fit even when rounded up to whole tiles.
MAX_SIZE = 2**31 - 2**16

#: The most matrices of a stack; a grid of blocks has four of them for each.
MAX_STACK = (2**16 - 1) // 4

#: More rows of 4:8 and 8:16 would take more than two passes over the weight.
_MAX_EXPANDED_ROWS = 32


def unsupported_reason(x: Array, compressed: Compressed, library: str = "") -> str:
    """Returns why a kernel cannot compute the product, or an empty string.

    Args:
      x: `[..., k]`.
      compressed: a weight of shape `[k, out]`, or a stack of them.
      library: that of another kernel for quantized weights.
    """
    *stack, k, out = compressed.shape
    if compressed.is_quantized and compressed.scales.shape[-2] != 1:
        return f"the weight has scales of shape {compressed.scales.shape}, not (1, out)"
    pattern = compressed.pattern
    if (pattern.n, pattern.m) not in _LIBRARIES:
        return f"the pattern is {pattern}, not 2:4, 4:8 or 8:16"
    if compressed.is_quantized and pattern.m != 4:
        return f"the pattern is {pattern}, and the weight is quantized"
    if x.dtype not in (jnp.bfloat16, jnp.float16):
        return f"the dtype is {x.dtype}, not bfloat16 or float16"
    if not all(isinstance(size, int) for size in (*x.shape, *stack, k, out)):
        return "a size is symbolic"
    if max(math.prod(x.shape[:-1]), math.prod(stack) * max(k, out)) >= MAX_SIZE:
        return f"the kernel counts in 32 bits, but x has shape {x.shape}"
    if math.prod(stack) > MAX_STACK:
        return f"the stack has {math.prod(stack)} weights, more than {MAX_STACK}"
    multiple = multiple_of_k(pattern)
    if k % multiple or out % 16:
        return f"the weight's sizes {(k, out)} are not multiples of {multiple} and 16"
    if not (is_automatic(x) and is_automatic(compressed.values)):
        return "a mesh has axes that are not automatic"
    libraries = [library or library_of(pattern)]
    if compressed.is_quantized and not library:
        libraries.append(MIXED)
    return next(filter(None, map(cuda_target.unavailable, libraries)), "")


def fits(stack: int, rows: int, k: int, outs: Sequence[int]) -> bool:
    """Returns whether a kernel can multiply by shards of weights of these sizes.

    Unlike whole arrays, shards may have any size, and `vmap` adds rows and stacks, of
    perhaps symbolic sizes.

    Args:
      stack: the number of matrices, each with rows of its own.
      rows: those of each.
      k: the inputs.
      outs: the outputs of each weight.
    """
    if not all(isinstance(size, int) for size in (stack, rows)):
        return False
    if not (stack and rows and k) or any(not out or out % 16 for out in outs):
        return False
    return not _too_large(stack, rows, k, outs)


def require_size(stack: int, rows: int, k: int, outs: Sequence[int]) -> None:
    """Raises if `vmap` made more of a product than a kernel computes.

    Args:
      stack: as in `fits`.
      rows: as in `fits`.
      k: as in `fits`.
      outs: as in `fits`.

    Raises:
      ValueError: there are too many weights, or elements.
    """
    if not all(isinstance(size, int) for size in (stack, rows)):
        return  # it is not known yet
    if reason := _too_large(stack, rows, k, outs):
        raise ValueError(
            f"implementation 'cuda' is not available: {reason}; x has shape "
            f"{(stack, rows, k)} and the first weights {(stack, k, outs[0])}: give "
            "'xla' or None, or fewer at a time by jax.lax.map(..., batch_size=)"
        )


def _too_large(stack: int, rows: int, k: int, outs: Sequence[int]) -> str:
    """Returns why a product is too large for a kernel, or an empty string."""
    if stack > MAX_STACK:
        return f"the stack has {stack} weights, more than {MAX_STACK}"
    if stack * max(rows, k, *outs) >= MAX_SIZE:
        return "the kernel counts in 32 bits"
    return ""


def decompresses(pattern: NM, rows: int) -> bool:
    """Returns whether XLA multiplies so many rows by default."""
    return pattern.m != 4 and rows > _MAX_EXPANDED_ROWS


def library_of(pattern: NM) -> str:
    """Returns the library that has the kernels of a pattern."""
    return _LIBRARIES[pattern.n, pattern.m]


def multiple_of_k(pattern: NM) -> int:
    """Returns what must divide `k`."""
    return 8 if pattern.m == 4 else 16
