"""Axes as sums and products of parts, as concatenations and reshapes make them.

The axis of a fused projection of size 48 is the sum of queries, keys and values, and
each of these is the product of heads and of channels of a head. A part that is made of
no others is an atom. To find out that two parts are the same, or that an atom is made
of others, changes all axes that hold it: a union-find structure.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple


#: What is known about an atom: it is not to be permuted; its elements also meet those
#: at other positions; it is not to be cut; its largest elements are chosen.
Mark = Literal["fixed", "mixed", "kept", "chosen"]


class Made(NamedTuple):
    """What a part is made of.

    Attributes:
      how: `"product"`, major to minor; `"sum"`, one after the other; `"same"`, that it
        was found to be another part; or `"family"`, another part at each position along
        an axis, as queries, keys and values have that lie in one array.
      of: the other parts.
      along: for a family, the axis.
    """

    how: Literal["product", "sum", "same", "family"]
    of: tuple[int, ...]
    along: int = -1


class Parts(NamedTuple):
    """All parts. They are numbered, and the lists grow while a program is read.

    Attributes:
      sizes: the number of elements of each.
      made: what each is made of; None for an atom.
      marks: what is known about atoms, with the reason.
      mixed: the parts, atoms or not, that were marked as mixed.
    """

    sizes: list[int]
    made: list[Made | None]
    marks: dict[int, dict[Mark, str]]
    mixed: list[int]


def no_parts() -> Parts:
    """Returns an empty record."""
    return Parts([], [], {}, [])


def new_atom(parts: Parts, size: int) -> int:
    """Returns a new part of which nothing is known. Size 1 is the empty product."""
    return _new(parts, size, Made("product", ()) if size == 1 else None)


def product(parts: Parts, factors: Sequence[int]) -> int:
    """Returns the product of parts, major to minor."""
    factors = [x for x in factors if parts.sizes[x] != 1]
    if len(factors) == 1:
        return factors[0]
    size = math.prod(parts.sizes[x] for x in factors)
    return _new(parts, size, Made("product", tuple(factors)))


def total(parts: Parts, terms: Sequence[int]) -> int:
    """Returns the sum of parts, one after the other."""
    terms = [x for x in terms if parts.sizes[x] != 0]
    if len(terms) == 1:
        return terms[0]
    return _new(parts, sum(parts.sizes[x] for x in terms), Made("sum", tuple(terms)))


def _new(parts: Parts, size: int, made: Made | None) -> int:
    parts.sizes.append(size)
    parts.made.append(made)
    return len(parts.sizes) - 1


def find(parts: Parts, part: int) -> int:
    """Returns the part that stands for all that were found to be the same."""
    while (made := parts.made[part]) is not None:
        if made.how == "same":
            (part,) = made.of
        elif made.how == "family" and len({find(parts, x) for x in made.of}) == 1:
            part = made.of[0]
        else:
            break
    return part


def family_of(parts: Parts, part: int) -> Made | None:
    """Returns what a part is at each position along an axis, if that differs."""
    made = parts.made[find(parts, part)]
    return made if made is not None and made.how == "family" else None


def is_atom(parts: Parts, part: int) -> bool:
    """Returns whether a part is made of no others."""
    return parts.made[find(parts, part)] is None


def factors_of(parts: Parts, part: int) -> list[int]:
    """Returns the atoms, sums and families whose product a part is, major to minor."""
    part = find(parts, part)
    made = parts.made[part]
    if made is None or made.how != "product":
        return [part]
    return [x for factor in made.of for x in factors_of(parts, factor)]


def terms_of(parts: Parts, part: int) -> list[int]:
    """Returns the atoms and products whose sum a part is.

    A product with a sum as its major factor is a sum: `(a + b) * c = a * c + b * c`.
    """
    part = find(parts, part)
    made = parts.made[part]
    if made is None or made.how == "family":
        return [part]
    if made.how == "sum":
        return [x for term in made.of for x in terms_of(parts, term)]
    first, *rest = factors_of(parts, part) or [part]
    terms = terms_of(parts, first) if rest else [first]
    if terms == [first]:
        return [part]
    products, start = list[int](), 0
    for term in terms:
        own = [members_at(parts, x, first, start, term) for x in rest]
        products.append(product(parts, [term, *own]))
        start += parts.sizes[term]
    return [x for term in products for x in terms_of(parts, term)]


def members_at(parts: Parts, part: int, along: int, start: int, term: int) -> int:
    """Returns what a part is at those positions along an axis that a term of it has."""
    family = family_of(parts, part)
    if family is None or find(parts, family.along) != find(parts, along):
        return part
    members = family.of[start : start + parts.sizes[term]]
    if len(members) == 1:
        return members[0]
    return _new(parts, parts.sizes[part], Made("family", members, term))


def atoms_of(parts: Parts, part: int) -> Iterator[int]:
    """Yields the atoms in a part, more than once where it holds them so."""
    part = find(parts, part)
    made = parts.made[part]
    if made is None:
        yield part
    else:
        for x in made.of:
            yield from atoms_of(parts, x)


def mark(parts: Parts, part: int, kind: Mark, reason: str) -> None:
    """Marks all atoms of a part. The first reason stays."""
    for atom in set(atoms_of(parts, part)):
        parts.marks.setdefault(atom, {}).setdefault(kind, reason)


def fix(parts: Parts, part: int, reason: str) -> None:
    """Marks a part that is not to be permuted."""
    mark(parts, part, "fixed", reason)


def mix(parts: Parts, part: int, reason: str) -> None:
    """Marks a part that is not to be permuted, as its elements meet one another."""
    mark(parts, part, "fixed", reason)
    mark(parts, part, "mixed", reason)
    parts.mixed.extend(factors_of(parts, part))


def replace_atom(parts: Parts, atom: int, made: Made) -> None:
    """Records what an atom is made of, which gets its marks."""
    parts.made[atom] = made
    for kind, reason in parts.marks.pop(atom, {}).items():
        mark(parts, atom, kind, reason)
