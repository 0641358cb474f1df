"""Views: which axes of a parameter lie along which axes of a value.

A value made from a parameter by moving its elements has axes that consist of whole axes
of the parameter, of pieces of them, or of several merged into one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from jaxsparse._trace.jaxpr import Path
from jaxsparse._trace.view_axis import (
    AxisPiece,
    Unit,
    ViewAxis,
    fill_axis,
    pieces_of,
    slice_axis,
)


class IndexedAxis(NamedTuple):
    """An axis that a value no longer has, because a single index of it was taken.

    Attributes:
      axis: the axis.
      scan: the path of the `scan` whose step is the index; None if the axis had size 1
        or the index is unknown.
    """

    axis: ViewAxis
    scan: Path | None = None


@dataclass(frozen=True)
class View:
    """How a value shows one parameter. Methods follow it through operations.

    Attributes:
      leaf: the parameter's path.
      axes: one `ViewAxis` for each axis of the value.
      indexed: the axes that loops, shards or indices run over.
      merged: whether it was summed with other parameters on the way.
      scaled: whether it was multiplied by anything on the way.
      varies: whether it was multiplied by a value that depends on the inputs.
      bent: the operation on the way that is not a product with a factor, if any.
      unclear: why the other operand of a product may not be an input of this
        parameter, if so: the value is one of several, or was indexed along an axis
        on which the parameter is stacked with others.
      lost: the operation after which its zeros or its axes are unknown, if any.
    """

    leaf: str
    axes: tuple[ViewAxis, ...]
    indexed: tuple[IndexedAxis, ...] = ()
    merged: bool = False
    scaled: bool = False
    varies: bool = False
    bent: str = ""
    unclear: str = ""
    lost: str = ""

    @property
    def batch(self) -> frozenset[int]:
        """The parameter's axes that loops, shards or indices run over."""
        indexed = (axis for axis, _ in self.indexed)
        return frozenset(i for axis in indexed for i in axis.parameter_axes)

    @property
    def is_broadcast(self) -> bool:
        """Whether an axis of the value holds copies."""
        return any(piece.axis < 0 for axis in self.axes for piece in axis.pieces)

    @property
    def positions(self) -> "View":
        """The view without what is known about its values: where its zeros are."""
        return replace(self, scaled=False, varies=False, bent="", unclear="")

    def bend(self, primitive: str) -> "View":
        """Returns the view after an operation that is not a product with a factor."""
        return replace(self, bent=self.bent or primitive)

    def lose(self, primitive: str) -> "View":
        """Returns the view after an operation that is not understood."""
        return replace(self, axes=(), lost=self.lost or primitive)

    def transpose(self, order: Sequence[int]) -> "View":
        """Returns the view after `lax.transpose`."""
        return replace(self, axes=tuple(self.axes[i] for i in order))

    def broadcast(
        self, old: Sequence[int], new: Sequence[int], axes: Sequence[int]
    ) -> "View":
        """Returns the view after `lax.broadcast_in_dim`, from shape `old` to `new`."""
        copies = [ViewAxis((AxisPiece(-1, n),)) if n > 1 else ViewAxis() for n in new]
        expanded = []
        for axis, size, i in zip(self.axes, old, axes, strict=True):
            if size == new[i]:
                copies[i] = axis
            elif axis.parameter_axes:
                expanded.append(IndexedAxis(axis))
        return replace(self, axes=tuple(copies), indexed=(*self.indexed, *expanded))

    def scan_step(self, length: int, scan: Path) -> "View":
        """Returns the view in one step of a scan over the first axis."""
        view, first = self, self.axes[0]
        if first.offset or first.covered != length:
            view = replace(self, unclear="it is stacked with others")
        return view.squeeze([0], scan)

    def squeeze(self, axes: Iterable[int], scan: Path | None = None) -> "View":
        """Returns the view after `lax.squeeze`, or after taking one index of axes."""
        axes = set(axes)
        indexed = [
            IndexedAxis(axis, scan)
            for i, axis in enumerate(self.axes)
            if i in axes and axis.parameter_axes
        ]
        rest = tuple(axis for i, axis in enumerate(self.axes) if i not in axes)
        return replace(self, axes=rest, indexed=(*self.indexed, *indexed))

    def slice(
        self,
        shape: Sequence[int],
        starts: Sequence[int],
        limits: Sequence[int],
        strides: Sequence[int],
    ) -> "View | None":
        """Returns the view after `lax.slice`; None if nothing of the parameter is left.

        `shape` is the operand's.
        """
        axes = []
        for axis, *bounds in zip(
            self.axes, shape, starts, limits, strides, strict=True
        ):
            axis = slice_axis(axis, *bounds)
            if axis is None:
                return None
            axes.append(axis)
        return replace(self, axes=tuple(axes))

    def dynamic_slice(self, shape: Sequence[int], sizes: Sequence[int]) -> "View":
        """Returns the view after `lax.dynamic_slice` of an operand of shape `shape`."""
        axes = [
            axis if size == old else axis.mix("dynamic_slice")
            for axis, old, size in zip(self.axes, shape, sizes, strict=True)
        ]
        return replace(self, axes=tuple(axes))

    def shift(self, axis: int, by: int) -> "View":
        """Returns the view after `by` elements were put before it along an axis."""
        axes = list(self.axes)
        axes[axis] = axes[axis]._replace(offset=axes[axis].offset + by)
        return replace(self, axes=tuple(axes))

    def reverse(self, axes: Sequence[int], shape: Sequence[int]) -> "View":
        """Returns the view after `lax.rev` of an operand of shape `shape`."""
        reversed_ = [
            axis.reverse(size) if i in axes else axis
            for i, (axis, size) in enumerate(zip(self.axes, shape, strict=True))
        ]
        return replace(self, axes=tuple(reversed_))

    def reorder(self, axes: Sequence[int], primitive: str) -> "View":
        """Returns the view after an operation that reorders elements along axes."""
        mixed = [a.mix(primitive) if i in axes else a for i, a in enumerate(self.axes)]
        return replace(self, axes=tuple(mixed))

    def reshape(self, old: Sequence[int], new: Sequence[int]) -> "View":
        """Returns the view after `lax.reshape` in row-major order.

        New axes are filled from the last to the first with the pieces of the old ones;
        a piece that is larger than the axis is split into blocks.
        """
        if 0 in old:
            return replace(self, axes=tuple(ViewAxis() for _ in new))
        view = self.squeeze(i for i, size in enumerate(old) if size == 1)
        sizes = [size for size in old if size != 1]
        units: list[Unit] = []
        for axis, size in zip(view.axes, sizes, strict=True):
            plain = not axis.mixed_by and not axis.offset and axis.covered == size
            units.extend(axis.pieces if plain else [(size, axis)])

        axes: list[ViewAxis] = []
        for i in reversed(range(len(new))):
            axis = fill_axis(new[i], units)
            if axis is None:
                rest = tuple(piece for unit in units for piece in pieces_of(unit))
                axes.extend([ViewAxis(rest, mixed_by="reshape")] * (i + 1))
                break
            axes.append(axis)
        return replace(view, axes=tuple(reversed(axes)))

    def shard(self, counts: Sequence[int], shape: Sequence[int]) -> "View":
        """Returns the view inside `shard_map`: one of `counts` blocks of each axis."""
        blocks = [b for n, k in zip(shape, counts, strict=True) for b in (k, n // k)]
        return self.reshape(shape, blocks).squeeze(range(0, len(blocks), 2))


def view_of(leaf: str, shape: Sequence[int]) -> View:
    """Returns the view of a parameter itself."""
    return View(leaf, tuple(ViewAxis((AxisPiece(i, n),)) for i, n in enumerate(shape)))
