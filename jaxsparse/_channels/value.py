"""What is known about a value of a program, and what its rules record."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from jaxsparse._channels.groups import ChannelRole
from jaxsparse._channels.parts import Parts, fix, mix, new_atom
from jaxsparse._channels.unify import unify


class Value(NamedTuple):
    """What is known about a value.

    A value may hold positions in an axis, as `argmax` returns them. If the axis is
    permuted, these are numbered anew, which is right for what only compares them with
    other positions or looks them up.

    Attributes:
      axes: the part that is each of its axes.
      counts: the parts of which it holds positions, `()` if it holds numbers. Several
        are those of an array of indices, for each element of its last axis; None there
        for numbers.
      number: what all elements are, if it is a constant of one number.
      negative: whether it says that positions are below zero, which they never are.
      wraps: whether it is positions plus the size of their axis.
      leaves: the parameters that it is computed from; None if inputs too.
      distinct: the parts along which no two elements are the same, as for the outputs
        of a product with a weight; after `relu` several may be zero.
    """

    axes: tuple[int, ...]
    counts: tuple[int | None, ...] = ()
    number: Any = None
    negative: bool = False
    wraps: bool = False
    leaves: frozenset[str] | None = frozenset()
    distinct: frozenset[int] = frozenset()


class Record(NamedTuple):
    """What the rules record.

    Attributes:
      parts: the parts of all axes.
      regions: the axes that elements of a value have, or the terms of a product. An
        operation treats all positions in them alike.
      roles: what products do with parts of leaves: `(path, part, role)`.
    """

    parts: Parts
    regions: list[tuple[int, ...]]
    roles: list[tuple[str, int, ChannelRole]]


def new_axes(record: Record, sizes: Iterable[int]) -> tuple[int, ...]:
    """Returns axes of which nothing is known."""
    return tuple(new_atom(record.parts, int(size)) for size in sizes)


def mixed_axes(record: Record, sizes: Iterable[int], reason: str) -> tuple[int, ...]:
    """Returns axes that are not permuted."""
    axes = new_axes(record, sizes)
    for axis in axes:
        mix(record.parts, axis, reason)
    return axes


def unify_axes(record: Record, one: Sequence[int], other: Sequence[int]) -> None:
    """Records that the axes of two values are the same."""
    for a, b in zip(one, other, strict=True):
        unify(record.parts, a, b)


def use_as_numbers(record: Record, value: Value, reason: str) -> Value:
    """Fixes the axes that a value holds positions of. It then holds numbers."""
    for part in value.counts:
        if part is not None:
            fix(record.parts, part, reason)
    return value._replace(counts=(), wraps=False)


def sizes_of(record: Record, axes: Iterable[int]) -> tuple[int, ...]:
    """Returns the sizes of axes."""
    return tuple(record.parts.sizes[axis] for axis in axes)
