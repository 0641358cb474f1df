"""What a value shows of a parameter: which of its axes lie along which of the value's.

A value made from a parameter by moving elements around has axes that are made of whole
axes of the parameter, of pieces of them, or of several merged. A `View` keeps track.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple


class AxisPiece(NamedTuple):
    """A piece of a parameter's axis: elements `start, start + stride, ...`.

    Attributes:
      axis: the parameter's axis; -1 for copies made by broadcasting.
      size: how many elements.
      stride: the step along the parameter's axis.
      start: the first element.
      unit: where a reshape cut the axis into blocks, the size of a block, else 0.
    """

    axis: int
    size: int
    stride: int = 1
    start: int = 0
    unit: int = 0


class ViewAxis(NamedTuple):
    """One axis of a value.

    Attributes:
      factors: the pieces of parameter axes in it, major to minor.
      place: where they begin, which is not 0 behind a concatenation or a padding.
      opaque: the operation that mixed them up, if any.
    """

    factors: tuple[AxisPiece, ...] = ()
    place: int = 0
    opaque: str = ""

    @property
    def axes(self) -> tuple[int, ...]:
        """The parameter's axes in it."""
        return tuple(f.axis for f in self.factors if f.axis >= 0)

    @property
    def covered(self) -> int:
        """How many places of the axis come from the parameter."""
        return math.prod(f.size for f in self.factors)

    def mixed(self, why: str) -> "ViewAxis":
        """The same axis after an operation that loses the order of its elements."""
        return ViewAxis(self.factors, opaque=self.opaque or why)


class IndexedAxis(NamedTuple):
    """An axis that a value no longer has, since one place of it was taken.

    Attributes:
      dim: the axis.
      by: what tells the place: the path of a `scan`, whose step it is, or None where
        one place was all there was, or where it is not known.
    """

    dim: ViewAxis
    by: Any = None


@dataclass(frozen=True)
class View:
    """What a value shows of one parameter.

    Attributes:
      leaf: the parameter's path.
      dims: one `ViewAxis` for each axis of the value.
      indexed: the axes that loops, shards or indices run over.
      merged: whether it was summed with other parameters on the way.
      unclear: why what the value meets may not be meant for this parameter, if so: it
        is one of several, or a piece among others along an axis that was indexed.
      lost: the operation after which its zeros or its axes are unknown, if any.
    """

    leaf: str
    dims: tuple[ViewAxis, ...]
    indexed: tuple[IndexedAxis, ...] = ()
    merged: bool = False
    unclear: str = ""
    lost: str = ""

    @property
    def batch(self) -> frozenset[int]:
        """The parameter's axes that loops, shards or indices run over."""
        return frozenset(axis for dim, _ in self.indexed for axis in dim.axes)

    @property
    def broadcast(self) -> bool:
        """Whether an axis of the value holds copies."""
        return any(factor.axis < 0 for dim in self.dims for factor in dim.factors)


def view_of(leaf: str, shape: Sequence[int]) -> View:
    """A parameter itself."""
    return View(leaf, tuple(ViewAxis((AxisPiece(i, n),)) for i, n in enumerate(shape)))


def lost(view: View, why: str) -> View:
    """What is left of a view behind an operation that is not understood."""
    return replace(view, dims=(), lost=view.lost or why)


def transpose(view: View, order: Sequence[int]) -> View:
    """Behind `lax.transpose`."""
    return replace(view, dims=tuple(view.dims[i] for i in order))


def broadcast(
    view: View, old: Sequence[int], new: Sequence[int], places: Sequence[int]
) -> View:
    """Behind `lax.broadcast_in_dim`, from shape `old` to shape `new`."""
    dims = [ViewAxis((AxisPiece(-1, n),)) if n > 1 else ViewAxis() for n in new]
    copied = []
    for dim, size, place in zip(view.dims, old, places, strict=True):
        if size == new[place]:
            dims[place] = dim
        elif dim.axes:
            copied.append(IndexedAxis(dim))
    return replace(view, dims=tuple(dims), indexed=(*view.indexed, *copied))


def step(view: View, size: int, by: Any) -> View:
    """One step's part of a value of which a scan goes through the first axis."""
    dim = view.dims[0]
    if dim.place or dim.covered != size:
        view = replace(view, unclear="it is stacked with others")
    return squeeze(view, [0], by)


def squeeze(view: View, axes: Sequence[int], by: Any = None) -> View:
    """Behind `lax.squeeze`: an axis of which one place was taken is indexed."""
    taken = [IndexedAxis(view.dims[i], by) for i in axes if view.dims[i].axes]
    dims = tuple(dim for i, dim in enumerate(view.dims) if i not in axes)
    return replace(view, dims=dims, indexed=(*view.indexed, *taken))


def cut(
    view: View,
    shape: Sequence[int],
    starts: Sequence[int],
    limits: Sequence[int],
    strides: Sequence[int],
) -> View | None:
    """Behind `lax.slice`; None where nothing of the parameter is left."""
    dims = [
        _cut(dim, *piece)
        for dim, *piece in zip(view.dims, shape, starts, limits, strides, strict=True)
    ]
    kept = tuple(dim for dim in dims if dim is not None)
    return replace(view, dims=kept) if len(kept) == len(dims) else None


def dynamic_slice(view: View, shape: Sequence[int], sizes: Sequence[int]) -> View:
    """Behind `lax.dynamic_slice`: one place is an index, more are in no known order."""
    dims = [
        dim if new == old else dim.mixed("dynamic_slice")
        for dim, old, new in zip(view.dims, shape, sizes, strict=True)
    ]
    return replace(view, dims=tuple(dims))


def shift(view: View, axis: int, by: int) -> View:
    """One operand of a concatenation, or behind a padding of `by` places."""
    dim = view.dims[axis]
    dims = list(view.dims)
    dims[axis] = dim._replace(place=dim.place + by)
    return replace(view, dims=tuple(dims))


def reorder(view: View, axes: Sequence[int], why: str) -> View:
    """Behind an operation that reorders the elements along some axes."""
    dims = tuple(d.mixed(why) if i in axes else d for i, d in enumerate(view.dims))
    return replace(view, dims=dims)


def reshape(view: View, old: Sequence[int], new: Sequence[int]) -> View:
    """Behind `lax.reshape` in row-major order.

    New axes are filled from the last to the first with the pieces of the old ones;
    where a piece is larger than what is wanted it is cut into blocks.
    """
    if 0 in old:
        return replace(view, dims=tuple(ViewAxis() for _ in new))
    ones = [i for i, size in enumerate(old) if size == 1]
    view = squeeze(view, ones)
    sizes = [size for size in old if size != 1]
    pieces: list[AxisPiece | tuple[int, ViewAxis]] = []
    for dim, size in zip(view.dims, sizes, strict=True):
        plain = not dim.opaque and not dim.place and dim.covered == size
        pieces.extend(dim.factors if plain else [(size, dim)])

    dims: list[ViewAxis] = []
    for i in reversed(range(len(new))):
        dim = _fill(new[i], pieces)
        if dim is None:
            rest = tuple(f for piece in pieces for f in _factors(piece))
            unknown = ViewAxis(rest, opaque="reshape")
            dims.extend([unknown] * (i + 1))
            break
        dims.append(dim)
    return replace(view, dims=tuple(reversed(dims)))


def shard(view: View, counts: Sequence[int], shape: Sequence[int]) -> View:
    """Inside `shard_map`: of each axis, of size `shape`, one of `counts` blocks."""
    cut_up = [part for n, k in zip(shape, counts, strict=True) for part in (k, n // k)]
    blocks = reshape(view, shape, cut_up)
    return squeeze(blocks, range(0, len(cut_up), 2))


def _fill(size: int, pieces: list[AxisPiece | tuple[int, ViewAxis]]) -> ViewAxis | None:
    """Takes the last pieces for an axis of `size`; None where they do not fit."""
    taken: list[AxisPiece] = []
    while size > 1:
        piece = pieces[-1]
        if not isinstance(piece, AxisPiece):
            if piece[0] == size and not taken:
                pieces.pop()
                return piece[1]
            pieces.extend(taken)
            return None
        if size % piece.size == 0:
            taken.insert(0, piece)
            pieces.pop()
            size //= piece.size
        elif piece.size % size == 0:
            unit = math.gcd(piece.unit, size) if piece.stride == 1 else piece.unit
            minor = piece._replace(size=size, unit=unit)
            major = AxisPiece(piece.axis, piece.size // size, piece.stride * size)
            taken.insert(0, minor)
            pieces[-1] = major
            size = 1
        else:
            pieces.extend(taken)
            return None
    return ViewAxis(_joined(taken))


def _joined(factors: Sequence[AxisPiece]) -> tuple[AxisPiece, ...]:
    """Blocks of an axis beside the places within them are the axis again."""
    joined: list[AxisPiece] = []
    for minor in factors:
        major = joined[-1] if joined else None
        if (
            major is not None
            and major.axis == minor.axis
            and major.stride == minor.size * minor.stride
        ):
            start = major.start + minor.start
            size = major.size * minor.size
            joined[-1] = AxisPiece(minor.axis, size, minor.stride, start, major.unit)
        else:
            joined.append(minor)
    return tuple(joined)


def _factors(piece: AxisPiece | tuple[int, ViewAxis]) -> tuple[AxisPiece, ...]:
    return (piece,) if isinstance(piece, AxisPiece) else piece[1].factors


def _cut(
    dim: ViewAxis, size: int, start: int, limit: int, stride: int
) -> ViewAxis | None:
    if (start, limit, stride) == (0, size, 1):
        return dim
    if stride != 1:
        return dim.mixed("strided slice")
    if dim.opaque:
        return dim
    if not dim.factors:
        there = start <= dim.place < limit
        return dim._replace(place=dim.place - start) if there else None
    major, *minor = dim.factors
    block = math.prod(f.size for f in minor)
    first = max(start - dim.place, 0)
    last = min(limit - dim.place, dim.covered)
    if first >= last:
        return None
    if first % block or last % block:
        return dim.mixed("slice")
    kept = major._replace(
        size=(last - first) // block,
        start=major.start + first // block * major.stride,
    )
    return ViewAxis((kept, *minor), place=max(dim.place - start, 0))
