"""One axis of a value: the pieces of a parameter's axes that lie along it."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class AxisPiece(NamedTuple):
    """The elements `start, start + stride, ...` of a parameter's axis.

    The stride is negative if they are in reverse order.

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

    def reverse(self, size: int) -> "ViewAxis":
        """Returns the axis, of `size` elements, with its elements in reverse order."""
        if self.mixed_by:
            return self
        offset = size - self.offset - self.covered
        return ViewAxis(tuple(map(_reverse, self.pieces)), offset)


def _reverse(piece: AxisPiece) -> AxisPiece:
    start = piece.start + (piece.size - 1) * piece.stride
    return piece._replace(start=start, stride=-piece.stride)


#: What a reshape moves as a whole: a piece, or an axis that is not made of pieces
#: alone, with its size.
Unit = AxisPiece | tuple[int, ViewAxis]


def fill_axis(size: int, units: list[Unit]) -> ViewAxis | None:
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


def pieces_of(unit: Unit) -> tuple[AxisPiece, ...]:
    """Returns the pieces in a unit."""
    return (unit,) if isinstance(unit, AxisPiece) else unit[1].pieces


def slice_axis(
    axis: ViewAxis, size: int, start: int, limit: int, stride: int
) -> ViewAxis | None:
    """Returns the axis, of `size` elements, after a slice; None if nothing is left."""
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
