"""Where the atoms of a leaf's axes lie in it, as slices and reshapes."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jaxsparse._channels.families import at_position
from jaxsparse._channels.parts import (
    Parts,
    atoms_of,
    factors_of,
    family_of,
    find,
    is_atom,
    new_atom,
    terms_of,
)


#: Channels that lie in more pieces are not permuted.
_MOST_PIECES = 256


class Location(NamedTuple):
    """Where an atom lies in a leaf.

    Attributes:
      atom: the atom.
      axis: the axis of the leaf.
      slices: for each axis of the leaf `(start, stop)`.
      factors: the factors of all axes there; it is the factor `channel`.
      channel: see `factors`.
      stacked: whether other channels lie beside, at other positions along another axis.
    """

    atom: int
    axis: int
    slices: tuple[tuple[int, int], ...]
    factors: tuple[int, ...]
    channel: int
    stacked: bool = False


class _Piece(NamedTuple):
    """A range of an axis in which one factor is an atom."""

    start: int
    factors: list[int]
    channel: int


def locations_in(parts: Parts, axes: Sequence[int]) -> Iterator[Location]:
    """Yields the locations of all atoms in the axes of a leaf."""
    yield from _locations(parts, axes)
    for i, along in enumerate(axes):
        if not any(_is_family_along(parts, x, along) for x in axes):
            continue
        for position in range(parts.sizes[along]):
            inner = list(at_position(parts, axes, i, position))
            members = {
                x for axis in axes for x in _members(parts, axis, along, position)
            }
            inner[i] = new_atom(parts, 1)
            for location in _locations(parts, inner):
                if location.atom in members:
                    slices = list(location.slices)
                    slices[i] = position, position + 1
                    yield location._replace(slices=tuple(slices), stacked=True)


def _is_family_along(parts: Parts, axis: int, along: int) -> bool:
    """Returns whether a factor of an axis is a family along another axis."""
    families = [family_of(parts, x) for x in factors_of(parts, axis)]
    return find(parts, along) in [find(parts, x.along) for x in families if x]


def _members(parts: Parts, axis: int, along: int, position: int) -> Iterator[int]:
    """Yields the atoms that the families along an axis are at a position."""
    for factor in factors_of(parts, axis):
        if _is_family_along(parts, factor, along):
            family = family_of(parts, factor)
            assert family is not None
            yield from atoms_of(parts, family.of[position])


def _locations(parts: Parts, axes: Sequence[int]) -> Iterator[Location]:
    whole = [factors_of(parts, axis) for axis in axes]
    for i, axis in enumerate(axes):
        before = [x for factors in whole[:i] for x in factors]
        after = [x for factors in whole[i + 1 :] for x in factors]
        for piece in _pieces(parts, axis):
            size = math.prod(parts.sizes[x] for x in piece.factors)
            slices = [(0, parts.sizes[x]) for x in axes]
            slices[i] = piece.start, piece.start + size
            yield Location(
                piece.factors[piece.channel],
                i,
                tuple(slices),
                (*before, *piece.factors, *after),
                len(before) + piece.channel,
            )


def interleaved_atoms(parts: Parts, axes: Sequence[int]) -> Iterator[int]:
    """Yields the atoms in the axes of a leaf that lie in too many pieces."""
    for axis in axes:
        located = {piece.factors[piece.channel] for piece in _pieces(parts, axis)}
        families = [x for x in factors_of(parts, axis) if family_of(parts, x)]
        located.update(x for family in families for x in atoms_of(parts, family))
        yield from set(atoms_of(parts, axis)) - located


def _pieces(parts: Parts, axis: int) -> Iterator[_Piece]:
    start = 0
    for term in terms_of(parts, axis):
        factors = factors_of(parts, term)
        yield from _pieces_of_product(parts, start, factors, len(factors))
        start += parts.sizes[term]


def _pieces_of_product(
    parts: Parts, start: int, factors: list[int], count: int
) -> Iterator[_Piece]:
    """Yields the pieces of the atoms in the first `count` factors.

    What is before a sum of parts, as heads before `(queries + keys + values)`, repeats
    the pieces of that.
    """
    for i, factor in enumerate(factors[:count]):
        if is_atom(parts, factor):
            yield _Piece(start, factors, i)
            continue
        major = math.prod(parts.sizes[x] for x in factors[:i])
        own = () if family_of(parts, factor) else atoms_of(parts, factor)
        if major > _MOST_PIECES or not any(True for _ in own):
            continue
        rest = factors[i + 1 :]
        minor = math.prod(parts.sizes[x] for x in rest)
        for j in range(major):
            inner = start + j * parts.sizes[factor] * minor
            for term in terms_of(parts, factor):
                own = factors_of(parts, term)
                yield from _pieces_of_product(parts, inner, [*own, *rest], len(own))
                inner += parts.sizes[term] * minor
