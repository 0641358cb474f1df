"""Makes the compressed forms of one planned leaf, for its products in training."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array

from jaxsparse._compressed import lax_ops
from jaxsparse._compressed.accelerated_weight import Form, form_order
from jaxsparse._compressed.compress import max_kept
from jaxsparse._compressed.compress_both import Mask, compress_both
from jaxsparse._compressed.compressed_array import Compressed
from jaxsparse._compressed.indices import POSITION_BITS
from jaxsparse._patterns import NM, is_zero, unpack_mask
from jaxsparse._plans import LeafPlan
from jaxsparse._sharding import is_automatic


def form_axes(planned: LeafPlan, leaf: Any) -> tuple[int, ...]:
    """Returns the axes of a leaf along which compressed forms of it can be made."""
    pattern = planned.pattern
    if not isinstance(pattern, NM) or pattern.m not in POSITION_BITS:
        return ()
    is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
    if len(leaf.shape) < 2 or not is_float or not is_automatic(leaf):
        return ()
    assert planned.axis is not None
    return (planned.axis, planned.output[-1])[: 1 + pattern.transposable]


def make_forms(
    leaf: Array,
    mask: Mask | None,
    planned: LeafPlan,
    axes: tuple[int, ...],
    dtype: DTypeLike,
) -> tuple[Form, ...]:
    """Returns the forms of a leaf along some of its `form_axes`.

    Args:
      leaf: the weight.
      mask: its mask, bool or packed, or None for the weights that are not zero.
      planned: its plan.
      axes: the axes.
      dtype: the dtype of the values.
    """
    if not axes:
        return ()
    assert isinstance(planned.pattern, NM)
    view = _matrix_view(planned, leaf.ndim)
    if mask is not None and not (view.is_leaf and mask.dtype == jnp.uint8):
        mask = view.as_matrices(unpack_mask(mask, leaf.shape))
    sides = tuple(-2 if axis == view.rows[-1] else -1 for axis in axes)
    matrices = compress_both(
        view.as_matrices(leaf), mask, planned.pattern, dtype, sides
    )
    forms = [
        _as_form(matrix, planned, view, axis)
        for matrix, axis in zip(matrices, axes, strict=True)
    ]
    return tuple(form for form in forms if form is not None)


def check_zeros(leaf: Any, mask: Any, planned: LeafPlan) -> None:
    """Raises unless a leaf, or its mask, obeys its plan. Traced ones are not checked.

    Raises:
      ValueError: a group has more weights than the pattern keeps.
    """
    shape, pattern = planned.shape, planned.pattern
    if isinstance(leaf if mask is None else mask, Tracer):
        return
    assert isinstance(pattern, NM)
    assert shape is not None
    for axis in form_axes(planned, leaf):
        with jax.ensure_compile_time_eval():  # it is concrete, even under a trace
            kept = ~is_zero(leaf) if mask is None else jnp.asarray(mask)
            count = int(max_kept(kept, shape, pattern.m, axis))
        if count > pattern.n:
            what = "has" if mask is None else "has a mask that keeps"
            raise ValueError(
                f"leaf {planned.path!r} of shape {shape} {what} {count} weights in a "
                f"group of {pattern.m} along axis {axis}, but its plan is "
                f"{planned.decision!r}: give mask_params(params, masks), with masks of "
                "this plan"
            )


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

    def as_matrices(self, x: Array) -> Array:
        """Returns an array of the leaf's shape as a stack of matrices."""
        sizes = [[x.shape[axis] for axis in axes] for axes in self]
        x = x.transpose(self.stack + self.rows + self.columns)
        return x.reshape(*sizes[0], math.prod(sizes[1]), math.prod(sizes[2]))


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


def _as_form(
    matrix: Compressed, planned: LeafPlan, view: _MatrixView, axis: int
) -> Form | None:
    """Returns the form of the leaf, or None if bytes of its indices would be split."""
    assert planned.shape is not None
    order = view.stack + view.rows + view.columns
    if axis != view.rows[-1]:
        order = view.stack + view.columns + view.rows
    shape = tuple(planned.shape[i] for i in order)
    stored = matrix if matrix.shape == shape else lax_ops.reshape(matrix, shape)
    if stored is None:
        return None
    permutation = [order.index(i) for i in range(len(order))]
    return Form(stored, form_order(permutation), axis)
