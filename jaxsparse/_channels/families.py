"""Channels that differ along an axis: queries, keys and values in one array.

If a value is sliced at single positions along an axis, what is beside that axis may be
other channels at each position: a family. It stays one only if everything that has the
family has the axis too, and treats its positions apart.
"""

from collections.abc import Collection, Iterable, Sequence

from jaxsparse._channels.parts import (
    Made,
    Parts,
    atoms_of,
    factors_of,
    family_of,
    find,
    is_atom,
    members_at,
    new_atom,
    product,
    replace_atom,
    terms_of,
)
from jaxsparse._channels.unify import collapse


#: Axes with more positions have the same channels everywhere.
_MOST_POSITIONS = 64


def slice_position(
    parts: Parts, axes: Sequence[int], along: int, position: int
) -> tuple[int, ...]:
    """Returns the axes of a value at one position along one of them.

    The axis itself is returned as it is. What is beside it becomes a family.

    Args:
      parts: the parts of all axes.
      axes: the axes of the value.
      along: the index of the axis that is sliced.
      position: the position.
    """
    axis = find(parts, axes[along])
    is_fixed = lambda atom: "fixed" in parts.marks.get(atom, {})
    if (
        factors_of(parts, axis) == [axis]
        and not family_of(parts, axis)
        and parts.sizes[axis] <= _MOST_POSITIONS
        and not any(map(is_fixed, atoms_of(parts, axis)))
    ):
        own = set(atoms_of(parts, axis))
        others = [x for i, x in enumerate(axes) if i != along]
        for atom in {x for part in others for x in _top_atoms(parts, part)} - own:
            if not is_fixed(atom):
                sizes = [parts.sizes[atom]] * parts.sizes[axis]
                members = tuple(new_atom(parts, size) for size in sizes)
                replace_atom(parts, atom, Made("family", members, axis))
    return at_position(parts, axes, along, position)


def at_position(
    parts: Parts, axes: Sequence[int], along: int, position: int
) -> tuple[int, ...]:
    """Returns axes with the members that families have at a position, for the families.

    The arguments are those of `slice_position`.
    """
    one, axis = new_atom(parts, 1), axes[along]
    pick = lambda part: members_at(parts, part, axis, position, one)
    picked = [[pick(x) for x in factors_of(parts, part)] for part in axes]
    return tuple(
        part if i == along else product(parts, factors)
        for i, (part, factors) in enumerate(zip(axes, picked, strict=True))
    )


def _top_atoms(parts: Parts, part: int) -> list[int]:
    return [x for x in factors_of(parts, part) if is_atom(parts, x)]


def settle_families(
    parts: Parts,
    regions: Iterable[tuple[int, ...]],
    leaves: Collection[tuple[int, ...]],
) -> None:
    """Collapses the families that are found without their axis.

    Args:
      parts: the parts of all axes.
      regions: the axes of each value, and of the terms of each product.
      leaves: the axes of each leaf.
    """
    every = {*regions, *leaves}
    changed = True
    while changed:  # what is collapsed may unify, and so collapse, other families
        mixed = {find(parts, x) for x in parts.mixed}
        strays = [
            part
            for axes in every
            for axis in axes
            for part in _families_in(parts, axis)
            if not _has_axis(parts, axes, part, mixed)
            or (axes in leaves and not _lies_in(parts, axes, part))
        ]
        for part in strays:
            collapse(parts, part)
        changed = bool(strays)


def _has_axis(
    parts: Parts, axes: Sequence[int], part: int, mixed: Collection[int]
) -> bool:
    """Returns whether a family is beside its axis, whose positions stay apart."""
    factors = [x for axis in axes for x in factors_of(parts, axis)]
    along = _axis_of(parts, part)
    return (
        part in factors
        and factors.count(along) == 1
        and along not in mixed
        and all(parts.sizes[term] == 1 for term in terms_of(parts, along))
    )


def _axis_of(parts: Parts, part: int) -> int:
    family = family_of(parts, part)
    assert family is not None
    return find(parts, family.along)


def _families_in(parts: Parts, part: int) -> list[int]:
    """Returns the families in a part, also those in sums and in other families."""
    part = find(parts, part)
    made = parts.made[part]
    inner = [] if made is None else [x for y in made.of for x in _families_in(parts, y)]
    return [part, *inner] if family_of(parts, part) else inner


def _lies_in(parts: Parts, axes: Sequence[int], part: int) -> bool:
    """Returns whether the members of a family are ranges of the axes of a leaf.

    They are if the axis of the family is another one, or the major factor of its own.
    """
    along = _axis_of(parts, part)
    every = [factors_of(parts, axis) for axis in axes]
    return [along] in every or any(
        factors[:1] == [along] and part in factors for factors in every
    )
