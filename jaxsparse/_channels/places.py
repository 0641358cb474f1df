"""Where the atoms of a leaf's axes lie in it, as slices and reshapes."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jaxsparse._channels.parts import Parts, atoms_of, factors_of, is_atom, terms_of


#: Channels that lie in more pieces are not permuted.
_MOST_PIECES = 256


class Place(NamedTuple):
    """Where an atom lies in a leaf.

    Attributes:
      atom: the atom.
      axis: the axis of the leaf.
      slices: for each axis of the leaf `(start, stop)`.
      factors: the factors of all axes there; it is the factor `channel`.
      channel: see `factors`.
    """

    atom: int
    axis: int
    slices: tuple[tuple[int, int], ...]
    factors: tuple[int, ...]
    channel: int


class _Piece(NamedTuple):
    """A range of an axis in which one factor is an atom."""

    start: int
    factors: list[int]
    channel: int


def places_in(parts: Parts, axes: Sequence[int]) -> Iterator[Place]:
    """Yields the places of all atoms in the axes of a leaf."""
    whole = [factors_of(parts, axis) for axis in axes]
    for i, axis in enumerate(axes):
        before = [x for factors in whole[:i] for x in factors]
        after = [x for factors in whole[i + 1 :] for x in factors]
        for piece in _pieces(parts, axis):
            size = math.prod(parts.sizes[x] for x in piece.factors)
            slices = [(0, parts.sizes[x]) for x in axes]
            slices[i] = piece.start, piece.start + size
            yield Place(
                piece.factors[piece.channel],
                i,
                tuple(slices),
                (*before, *piece.factors, *after),
                len(before) + piece.channel,
            )


def interleaved_atoms(parts: Parts, axes: Sequence[int]) -> Iterator[int]:
    """Yields the atoms in the axes of a leaf that lie in too many pieces."""
    for axis in axes:
        found = {piece.factors[piece.channel] for piece in _pieces(parts, axis)}
        yield from set(atoms_of(parts, axis)) - found


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
        if major > _MOST_PIECES or not any(atoms_of(parts, factor)):
            continue
        rest = factors[i + 1 :]
        minor = math.prod(parts.sizes[x] for x in rest)
        for j in range(major):
            inner = start + j * parts.sizes[factor] * minor
            for term in terms_of(parts, factor):
                own = factors_of(parts, term)
                yield from _pieces_of_product(parts, inner, [*own, *rest], len(own))
                inner += parts.sizes[term] * minor
