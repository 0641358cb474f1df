"""One weight to the compressed forms of both of its products in training.

A layer multiplies rows by its weight, and in its backward pass by the transposed
weight. A transposable mask makes both products sparse, each with groups along the axis
that it contracts.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, UInt8

from jaxsparse._compressed.compress import compress_masked
from jaxsparse._compressed.compressed_array import Compressed
from jaxsparse._patterns import (
    NM,
    best_transposable_mask,
    is_zero,
    pack_mask,
    unpack_mask,
)


Mask = Bool[Array, "..."] | UInt8[Array, "..."]


@partial(jax.jit, static_argnames=("pattern", "dtype", "axes"))
def compress_both(
    w: Float[Array, "*stack p q"],
    mask: Mask | None,
    pattern: NM,
    dtype: DTypeLike,
    axes: Sequence[int] = (-2, -1),
) -> tuple[Compressed, ...]:
    """Returns the compressed forms of a masked matrix, or of a stack of matrices.

    Args:
      w: the weight. What the mask prunes may have any value.
      mask: True = kept, of the shape of `w`, or packed along either axis of the matrix.
        If it keeps more than `n` weights of a group, the first `n` are kept. None keeps
        the weights that are not zero.
      pattern: n:m.
      dtype: the dtype of the values, to which kept weights are rounded.
      axes: along which axes of the matrix groups lie: a tuple of -2, -1 or both.

    Returns:
      One form for each of the axes, as `nm_matmul` takes it (stacks under `vmap`): for
      -2 of `w`, for -1 of its transpose `[*stack, q, p]`. Each has its groups along its
      own axis -2. If the mask keeps fewer than `n` weights of a group, the remaining
      slots hold plus zero.
    """
    mask = ~is_zero(w) if mask is None else unpack_mask(mask, w.shape)
    w, stored = w.astype(dtype), NM(pattern.n, pattern.m)
    matrices = {-2: (w, mask), -1: (w.mT, mask.mT)}
    return tuple(compress_masked(*matrices[i], stored, w.ndim - 2) for i in axes)


class BestForms(NamedTuple):
    """The best transposable mask of a weight, and the weight's forms under it.

    Attributes:
      forms: as `compress_both` returns for both axes.
      mask: packed along the group axis.
    """

    forms: tuple[Compressed, ...]
    mask: UInt8[Array, "..."]


@partial(jax.jit, static_argnames=("pattern", "dtype", "axis"))
def compress_best(
    w: Float[Array, "*stack p q"], pattern: NM, dtype: DTypeLike, axis: int = -2
) -> BestForms:
    """Finds the best transposable mask by magnitude, and compresses along both axes.

    Args:
      w: the weight, dense.
      pattern: transposable n:m.
      dtype: the dtype of the values.
      axis: the plan's group axis, -2 or -1. Along it masks are packed and lie the rows
        of blocks, which decides between equally good masks.
    """
    blocks = (-2, -1) if axis == -2 else (-1, -2)
    rows, columns = (i + w.ndim for i in blocks)
    kept = best_transposable_mask(jnp.abs(w), pattern.n, pattern.m, (rows, columns))
    forms = compress_both(w, kept, pattern, dtype)
    return BestForms(forms, pack_mask(kept, rows))
