"""One planned leaf with its zeros and its compressed forms, for training."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array

from jaxsparse._compressed import lax_ops
from jaxsparse._compressed.accelerated_weight import Accelerated, Form, form_order
from jaxsparse._compressed.compress import max_kept
from jaxsparse._compressed.compress_both import Mask, compress_best, compress_both
from jaxsparse._compressed.compressed_array import Compressed
from jaxsparse._compressed.indices import POSITION_BITS
from jaxsparse._masks import mask_straight_through, search_masks
from jaxsparse._patterns import NM, is_zero, unpack_mask
from jaxsparse._plans import LeafPlan
from jaxsparse._sharding import is_automatic


class LeafZeros(NamedTuple):
    """Which weights of a planned leaf are zero.

    Attributes:
      planned: the plan of the leaf.
      mask: a mask, bool or packed; `"best"` for the best mask of the weights; None for
        the zeros that are there.
    """

    planned: LeafPlan
    mask: Mask | Literal["best"] | None


def masked_leaf(leaf: Any, zeros: LeafZeros) -> Any:
    """Returns a leaf with its zeros, and with the gradient of a dense leaf."""
    mask = zeros.mask
    if isinstance(mask, str):
        mask = _best_mask(lax.stop_gradient(leaf), zeros.planned)
    return mask_straight_through(leaf, mask)


def accelerated_leaf(
    leaf: Array, zeros: LeafZeros, axes: tuple[int, ...], dtype: DTypeLike
) -> Accelerated | Array:
    """Returns a leaf as `masked_leaf`, with compressed forms.

    Args:
      leaf: the weight.
      zeros: its zeros.
      axes: some of its `form_axes`, along which groups lie.
      dtype: the dtype of the forms' values.
    """
    planned, mask = zeros
    fixed = lax.stop_gradient(leaf)
    if isinstance(mask, str):
        forms, mask = _find_forms(fixed, planned, axes, dtype)
    else:
        forms = _make_forms(fixed, mask, planned, axes, dtype)
    dense = mask_straight_through(leaf, mask)
    return Accelerated(dense, forms, planned.path) if forms else dense


def form_axes(leaf: Any, planned: LeafPlan) -> tuple[int, ...]:
    """Returns the axes of a leaf along which compressed forms of it can be made."""
    pattern = planned.pattern
    if not isinstance(pattern, NM) or pattern.m not in POSITION_BITS:
        return ()
    is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
    if len(leaf.shape) < 2 or not is_float or not is_automatic(leaf):
        return ()
    assert planned.axis is not None
    return (
        (planned.axis, planned.output[-1]) if pattern.transposable else (planned.axis,)
    )


def check_zeros(leaf: Any, zeros: LeafZeros) -> None:
    """Raises unless a leaf, or its mask, obeys its plan. Traced ones are not checked.

    Raises:
      ValueError: a group has more weights than the pattern keeps.
    """
    planned, mask = zeros
    if isinstance(mask, str) or isinstance(leaf if mask is None else mask, Tracer):
        return
    for axis in form_axes(leaf, planned):
        assert isinstance(planned.pattern, NM)
        m, shape = planned.pattern.m, tuple(leaf.shape)
        with jax.ensure_compile_time_eval():  # it is concrete, even under a trace
            kept = ~is_zero(leaf) if mask is None else jnp.asarray(mask)
            count = int(max_kept(kept, shape, m, axis))
        if count > planned.pattern.n:
            what = "has" if mask is None else "has a mask that keeps"
            raise ValueError(
                f"leaf {planned.path!r} of shape {shape} {what} {count} weights in a "
                f"group of {m} along axis {axis}, but its plan is "
                f"{planned.decision!r}: give mask_params(params, masks), with masks of "
                "this plan"
            )


def _best_mask(leaf: Array, planned: LeafPlan) -> Mask:
    return search_masks({planned.path: leaf}, [planned])[planned.path]


def _make_forms(
    leaf: Array,
    mask: Mask | None,
    planned: LeafPlan,
    axes: tuple[int, ...],
    dtype: DTypeLike,
) -> tuple[Form, ...]:
    """Returns the forms of a leaf under a mask."""
    assert isinstance(planned.pattern, NM)
    view = _matrix_view(planned, leaf.ndim)
    if mask is not None and not (view.is_leaf and mask.dtype == jnp.uint8):
        mask = view.as_matrices(unpack_mask(mask, leaf.shape))
    sides = tuple(map(view.side, axes))
    matrices = view.as_matrices(leaf)
    forms = compress_both(matrices, mask, planned.pattern, dtype, sides)
    return _as_forms(forms, axes, planned, view)


def _find_forms(
    leaf: Array, planned: LeafPlan, axes: tuple[int, ...], dtype: DTypeLike
) -> tuple[tuple[Form, ...], Mask]:
    """Returns the forms of a leaf under its best mask, and this mask."""
    assert isinstance(planned.pattern, NM)
    assert planned.axis is not None
    if len(axes) < 2:
        mask = _best_mask(leaf, planned)
        return _make_forms(leaf, mask, planned, axes, dtype), mask
    view = _matrix_view(planned, leaf.ndim)
    matrices = view.as_matrices(leaf)
    side = view.side(planned.axis)
    forms, packed, _ = compress_best(matrices, planned.pattern, dtype, side)
    mask = view.as_leaf(unpack_mask(packed, matrices.shape), leaf.shape)
    axes = view.rows[-1], view.columns[-1]
    return _as_forms(forms, axes, planned, view), mask


class _MatrixView(NamedTuple):
    """How a leaf is a stack of matrices.

    Attributes:
      stack: the axes of the leaf that are stacked.
      rows: the axes that are merged into the rows of the matrices.
      columns: those that are merged into their columns.
    """

    stack: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def is_leaf(self) -> bool:
        """Whether the leaf is such a stack as it is."""
        order = self.stack + self.rows + self.columns
        return len(order) == len(self.stack) + 2 and order == tuple(range(len(order)))

    def side(self, axis: int) -> int:
        """Returns -2 or -1: which axis of the matrices has the groups of `axis`."""
        return -2 if axis == self.rows[-1] else -1

    def as_matrices(self, x: Array) -> Array:
        """Returns an array of the leaf's shape as a stack of matrices."""
        sizes = [[x.shape[axis] for axis in axes] for axes in self]
        x = x.transpose(self.stack + self.rows + self.columns)
        return x.reshape(*sizes[0], math.prod(sizes[1]), math.prod(sizes[2]))

    def as_leaf(self, x: Array, shape: tuple[int, ...]) -> Array:
        """Returns a stack of matrices as an array of the leaf's shape."""
        order = self.stack + self.rows + self.columns
        moved = x.reshape([shape[axis] for axis in order])
        return moved.transpose([order.index(axis) for axis in range(len(order))])


def _matrix_view(planned: LeafPlan, ndim: int) -> _MatrixView:
    """Returns the view in which both group axes are innermost, and least is moved."""
    assert planned.axis is not None
    assert isinstance(planned.pattern, NM)
    first = last = planned.axis
    if planned.pattern.transposable:
        first, last = sorted((planned.axis, planned.output[-1]))
    elif planned.axis < ndim - 1:
        last = ndim - 1
    else:
        first = ndim - 2
    batch = 0
    while batch in planned.batch and batch < first:
        batch += 1
    return _MatrixView(
        (*range(last + 1, ndim), *range(batch)),
        tuple(range(batch, first + 1)),
        tuple(range(first + 1, last + 1)),
    )


def _as_forms(
    matrices: Sequence[Compressed],
    axes: Sequence[int],
    planned: LeafPlan,
    view: _MatrixView,
) -> tuple[Form, ...]:
    """Returns compressed matrices, with groups along axes of a leaf, as its forms.

    Those of which bytes of the indices would be split are left out.
    """
    assert planned.shape is not None
    forms = []
    for matrix, axis in zip(matrices, axes, strict=True):
        order = view.stack + view.rows + view.columns
        if view.side(axis) == -1:
            order = view.stack + view.columns + view.rows
        shape = tuple(planned.shape[i] for i in order)
        stored = matrix if matrix.shape == shape else lax_ops.reshape(matrix, shape)
        if stored is not None:
            permutation = [order.index(i) for i in range(len(order))]
            forms.append(Form(stored, form_order(permutation), axis))
    return tuple(forms)
