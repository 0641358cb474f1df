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
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, UInt8

from jaxsparse._compressed.compress import compress_masked
from jaxsparse._compressed.compressed_array import Compressed
from jaxsparse._compressed.cuda_compress import (
    as_packed,
    cuda_compress,
    unsupported_reason,
)
from jaxsparse._patterns import (
    NM,
    best_transposable_mask,
    is_zero,
    pack_mask,
    unpack_mask,
)


Mask = Bool[Array, "..."] | UInt8[Array, "..."]


def compress_both(
    w: Float[Array, "*stack p q"],
    mask: Mask | None,
    pattern: NM,
    dtype: DTypeLike,
    axes: Sequence[int] = (-2, -1),
) -> tuple[Compressed, ...]:
    """Returns the compressed forms of a masked matrix, or of a stack of matrices.

    One pass over the weight on a GPU with sparse tensor cores, by XLA elsewhere. The
    forms are constants: their derivatives are zero.

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
    w, stored = lax.stop_gradient(w), NM(pattern.n, pattern.m)
    if unsupported_reason(w, pattern, dtype):
        return _both_by_xla(w, mask, stored, dtype, tuple(axes))
    return _both_by_kernel(w, mask, stored, dtype, tuple(axes))


class BestForms(NamedTuple):
    """The best transposable mask of a weight, and the weight's forms under it.

    Attributes:
      forms: as `compress_both` returns for the axes.
      mask: packed along the group axis.
      kept: the weight with zeros, if it was asked for.
    """

    forms: tuple[Compressed, ...]
    mask: UInt8[Array, "..."]
    kept: Array | None = None


def compress_best(
    w: Float[Array, "*stack p q"], pattern: NM, dtype: DTypeLike, axis: int = -2
) -> BestForms:
    """Finds the best transposable mask by magnitude, and compresses along both axes.

    Also one pass, and a constant, as `compress_both`.

    Args:
      w: the weight, dense.
      pattern: transposable n:m.
      dtype: the dtype of the values.
      axis: the plan's group axis, -2 or -1. Along it masks are packed and lie the rows
        of blocks, which decides between equally good masks.
    """
    return _compress_best(w, _Best(pattern, dtype, axis))


def compress_squared_relu(
    h: Float[Array, "rows k"], axes: Sequence[int], *, kept: bool
) -> BestForms:
    """Compresses `relu(h)**2` under the best transposable 2:4 mask of `relu(h)`.

    Not of the squares, of which more sums need more bits than a float has.

    Args:
      h: what it is the ReLU of.
      axes: along which axes groups of the forms lie: (-2,), (-1,) or (-2, -1).
      kept: whether to return the masked squares, too.
    """
    pattern = NM(2, 4, transposable=True)
    return _compress_best(h, _Best(pattern, h.dtype, -2, tuple(axes), True, kept))


class _Best(NamedTuple):
    """What to compress under the best mask, and what to return."""

    pattern: NM
    dtype: DTypeLike
    axis: int
    axes: tuple[int, ...] = (-2, -1)
    squared_relu: bool = False
    kept: bool = False


def _compress_best(w: Array, options: _Best) -> BestForms:
    w = lax.stop_gradient(w)
    if unsupported_reason(w, options.pattern, options.dtype):
        return _best_by_xla(w, options)
    return _best_by_kernel(w, options)


@partial(jax.jit, static_argnames=("pattern", "dtype", "axes"))
def _both_by_xla(
    w: Array,
    mask: Mask | None,
    pattern: NM,
    dtype: DTypeLike,
    axes: tuple[int, ...],
) -> tuple[Compressed, ...]:
    mask = ~is_zero(w) if mask is None else unpack_mask(mask, w.shape)
    w = w.astype(dtype)
    matrices = {-2: (w, mask), -1: (w.mT, mask.mT)}
    return tuple(compress_masked(*matrices[i], pattern, w.ndim - 2) for i in axes)


@partial(jax.jit, static_argnames=("pattern", "dtype", "axes"))
def _both_by_kernel(
    w: Array,
    mask: Mask | None,
    pattern: NM,
    dtype: DTypeLike,
    axes: tuple[int, ...],
) -> tuple[Compressed, ...]:
    in_order = tuple(sorted(set(axes)))

    def by_xla(w: Array, *mask: Array) -> tuple[Array, ...]:
        only = mask[0] if mask else None
        return _arrays(_both_by_xla(w, only, pattern, dtype, in_order))

    source, masks = "nonzero", []
    if mask is not None:
        source, *masks = as_packed(mask, w.shape)
    arrays = cuda_compress(by_xla, source, dtype, in_order, w, *masks)
    forms = dict(zip(in_order, _forms(arrays, pattern), strict=True))
    return tuple(forms[axis] for axis in axes)


@partial(jax.jit, static_argnames="options")
def _best_by_xla(w: Array, options: _Best) -> BestForms:
    pattern, dtype, axis, axes, squared_relu, _ = options
    w = jax.nn.relu(w) if squared_relu else w
    blocks = (-2, -1) if axis == -2 else (-1, -2)
    rows, columns = (i + w.ndim for i in blocks)
    mask = _best_mask(jnp.abs(w), pattern.n, pattern.m, (rows, columns))
    w = jnp.square(w) if squared_relu else w
    stored = NM(pattern.n, pattern.m)
    forms = _both_by_xla(w, mask, stored, dtype, axes)
    kept = jnp.where(mask, w, jnp.zeros((), w.dtype)) if options.kept else None
    return BestForms(forms, pack_mask(mask, rows), kept)


# Traced once for a shape, whatever is compressed of it.
_best_mask = jax.jit(best_transposable_mask, static_argnums=(1, 2, 3))


@partial(jax.jit, static_argnames="options")
def _best_by_kernel(w: Array, options: _Best) -> BestForms:
    def by_xla(w: Array) -> tuple[Array, ...]:
        best = _best_by_xla(w, options)
        return *_arrays(best.forms), *best[1 : 2 + options.kept]

    pattern, dtype, axis, axes, squared_relu, kept = options
    source = "best" if axis == -2 else "best_along_out"
    if squared_relu:
        source = "best_relus"
    arrays = cuda_compress(by_xla, source, dtype, axes, w, kept=kept)
    forms = _forms(arrays[: 2 * len(axes)], NM(pattern.n, pattern.m))
    return BestForms(forms, *arrays[2 * len(axes) :])


def _arrays(forms: Sequence[Compressed]) -> tuple[Array, ...]:
    return tuple(x for form in forms for x in (form.values, form.indices))


def _forms(arrays: Sequence[Array], pattern: NM) -> tuple[Compressed, ...]:
    pairs = zip(arrays[::2], arrays[1::2], strict=True)
    return tuple(Compressed(*pair, pattern, -2) for pair in pairs)
