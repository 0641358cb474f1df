"""Views: which axes of a parameter lie along which axes of a value.

A value made from a parameter by moving its elements has axes that consist of whole axes
of the parameter, of pieces of them, or of several merged into one.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from jaxsparse._trace.jaxpr import Path


class AxisPiece(NamedTuple):
    """The elements `start, start + stride, ...` of a parameter's axis.

    Attributes:
      axis: the parameter's axis; -1 for copies made by broadcasting.
      size: the number of elements.
      stride: the step along the parameter's axis.
      start: the first element.
      block: the block size if a reshape split the axis into blocks, else 0.
    """

    axis: int
    size: int
    stride: int = 1
    start: int = 0
    block: int = 0


class ViewAxis(NamedTuple):
    """One axis of a value.

    Attributes:
      pieces: the pieces of parameter axes in it, major to minor.
      offset: the index of their first element, non-zero after a concatenation or
        padding.
      mixed_by: the operation that lost the order of the elements, if any.
    """

    pieces: tuple[AxisPiece, ...] = ()
    offset: int = 0
    mixed_by: str = ""

    @property
    def parameter_axes(self) -> tuple[int, ...]:
        """The parameter's axes in it."""
        return tuple(piece.axis for piece in self.pieces if piece.axis >= 0)

    @property
    def covered(self) -> int:
        """The number of elements along the axis that come from the parameter."""
        return math.prod(piece.size for piece in self.pieces)

    def mix(self, primitive: str) -> "ViewAxis":
        """Returns the axis after an operation that loses the order of its elements."""
        return ViewAxis(self.pieces, mixed_by=self.mixed_by or primitive)


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
      unclear: why the other operand of a product may not be an input of this
        parameter, if so: the value is one of several, or was indexed along an axis
        on which the parameter is stacked with others.
      lost: the operation after which its zeros or its axes are unknown, if any.
    """

    leaf: str
    axes: tuple[ViewAxis, ...]
    indexed: tuple[IndexedAxis, ...] = ()
    merged: bool = False
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
            axis = _slice_axis(axis, *bounds)
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
        units: list[_Unit] = []
        for axis, size in zip(view.axes, sizes, strict=True):
            plain = not axis.mixed_by and not axis.offset and axis.covered == size
            units.extend(axis.pieces if plain else [(size, axis)])

        axes: list[ViewAxis] = []
        for i in reversed(range(len(new))):
            axis = _fill(new[i], units)
            if axis is None:
                rest = tuple(piece for unit in units for piece in _pieces(unit))
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


#: What a reshape moves as a whole: a piece, or an axis that is not made of pieces
#: alone, with its size.
_Unit = AxisPiece | tuple[int, ViewAxis]


def _fill(size: int, units: list[_Unit]) -> ViewAxis | None:
    """Takes the last units for an axis of `size`; returns None if they do not fit."""
    taken: list[AxisPiece] = []
    while size > 1:
        unit = units[-1]
        if not isinstance(unit, AxisPiece):
            if unit[0] == size and not taken:
                units.pop()
                return unit[1]
            units.extend(taken)
            return None
        if size % unit.size == 0:
            taken.insert(0, unit)
            units.pop()
            size //= unit.size
        elif unit.size % size == 0:
            block = math.gcd(unit.block, size) if unit.stride == 1 else unit.block
            taken.insert(0, unit._replace(size=size, block=block))
            units[-1] = AxisPiece(unit.axis, unit.size // size, unit.stride * size)
            size = 1
        else:
            units.extend(taken)
            return None
    return ViewAxis(_join(taken))


def _join(pieces: Sequence[AxisPiece]) -> tuple[AxisPiece, ...]:
    """Joins the blocks of an axis with the elements within them."""
    joined: list[AxisPiece] = []
    for minor in pieces:
        major = joined[-1] if joined else None
        if (
            major is not None
            and major.axis == minor.axis
            and major.stride == minor.size * minor.stride
        ):
            start = major.start + minor.start
            size = major.size * minor.size
            joined[-1] = AxisPiece(minor.axis, size, minor.stride, start, major.block)
        else:
            joined.append(minor)
    return tuple(joined)


def _pieces(unit: _Unit) -> tuple[AxisPiece, ...]:
    return (unit,) if isinstance(unit, AxisPiece) else unit[1].pieces


def _slice_axis(
    axis: ViewAxis, size: int, start: int, limit: int, stride: int
) -> ViewAxis | None:
    if (start, limit, stride) == (0, size, 1):
        return axis
    if stride != 1:
        return axis.mix("strided slice")
    if axis.mixed_by:
        return axis
    if not axis.pieces:
        inside = start <= axis.offset < limit
        return axis._replace(offset=axis.offset - start) if inside else None
    major, *minor = axis.pieces
    block = math.prod(piece.size for piece in minor)
    first = max(start - axis.offset, 0)
    last = min(limit - axis.offset, axis.covered)
    if first >= last:
        return None
    if first % block or last % block:
        return axis.mix("slice")
    kept = major._replace(
        size=(last - first) // block,
        start=major.start + first // block * major.stride,
    )
    return ViewAxis((kept, *minor), offset=max(axis.offset - start, 0))
