"""Which channels have separate permutations: for each head, expert or layer.

Wherever an element belongs to a channel it also belongs to a head, so that the channels
of each head can be in an order of their own. This holds if every value, and every term
of a product, that has the axis of channels has the axis of heads too, exactly once.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from jaxsparse._channels.parts import (
    Parts,
    factors_of,
    family_of,
    find,
    is_atom,
    terms_of,
)


#: How many times an element's position goes through each atom: at least and at most.
Counts = Mapping[int, tuple[int, int]]


def separate_atoms(
    parts: Parts, regions: Iterable[tuple[int, ...]], channels: Iterable[int]
) -> dict[int, set[int]]:
    """Returns the atoms for whose positions each atom of channels is separate.

    Args:
      parts: the parts of all axes.
      regions: the axes of each value, and of the terms of each product.
      channels: the atoms to look for.
    """
    wanted, separate = set(channels), dict[int, set[int]]()
    seen: dict[int, Counts] = {}
    for axes in {tuple(find(parts, axis) for axis in region) for region in regions}:
        for i, axis in enumerate(axes):
            if wanted.isdisjoint(_counts(parts, axis, seen)):
                continue
            others = _both(
                _counts(parts, x, seen) for j, x in enumerate(axes) if j != i
            )
            for atom, beside in _beside(parts, axis, others, seen):
                if atom in wanted:
                    once = {k for k, count in beside.items() if count == (1, 1)}
                    separate[atom] = separate.get(atom, once) & once
    is_mixed = lambda atom: "mixed" in parts.marks.get(atom, {})
    return {
        atom: {k for k in others if k != atom and not is_mixed(k)}
        for atom, others in separate.items()
    }


def _counts(parts: Parts, part: int, seen: dict[int, Counts]) -> Counts:
    """Returns how many times positions in a part go through each atom in it."""
    part = find(parts, part)
    if part not in seen:
        factors = factors_of(parts, part)
        if is_atom(parts, part):
            seen[part] = {part: (1, 1)}
        elif factors == [part]:
            choices = _choices(parts, part)
            seen[part] = _either([_counts(parts, x, seen) for x in choices])
        else:
            seen[part] = _both(_counts(parts, factor, seen) for factor in factors)
    return seen[part]


def _beside(
    parts: Parts, part: int, others: Counts, seen: dict[int, Counts]
) -> Iterator[tuple[int, Counts]]:
    """Yields each atom of a part with the counts of all that its elements go through.

    `others` are the counts of what is beside the part.
    """
    part = find(parts, part)
    if is_atom(parts, part):
        yield part, others
        return
    factors = factors_of(parts, part)
    if factors == [part]:
        for choice in _choices(parts, part):
            yield from _beside(parts, choice, others, seen)
        return
    for i, factor in enumerate(factors):
        siblings = [x for j, x in enumerate(factors) if j != i]
        beside = _both([others, *(_counts(parts, x, seen) for x in siblings)])
        yield from _beside(parts, factor, beside, seen)


def _choices(parts: Parts, part: int) -> Sequence[int]:
    """Returns the terms of a sum, or the members of a family."""
    family = family_of(parts, part)
    return terms_of(parts, part) if family is None else family.of


def _both(counts: Iterable[Counts]) -> Counts:
    """Returns the counts of positions that go through all of these."""
    summed: dict[int, tuple[int, int]] = {}
    for count in counts:
        for atom, (least, most) in count.items():
            low, high = summed.get(atom, (0, 0))
            summed[atom] = low + least, high + most
    return summed


def _either(counts: Sequence[Counts]) -> Counts:
    """Returns the counts of positions that go through one of these."""
    atoms = {atom for count in counts for atom in count}
    each = {atom: [count.get(atom, (0, 0)) for count in counts] for atom in atoms}
    return {
        atom: (min(low for low, _ in pairs), max(high for _, high in pairs))
        for atom, pairs in each.items()
    }
