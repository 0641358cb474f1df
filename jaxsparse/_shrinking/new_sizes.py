"""How many channels of each group are kept."""

import re
from collections.abc import Mapping
from typing import Any

from jaxsparse._channels import ChannelGroup, ChannelGroups


def new_sizes(
    groups: ChannelGroups,
    sparsity: float | Mapping[str, float] | None,
    sizes: Mapping[str, int] | None,
    multiple_of: int,
) -> dict[int, int]:
    """Returns the new sizes of the groups that lose channels, by number.

    Args:
      groups: all groups.
      sparsity: the fraction of the channels that goes, or fractions by the path of a
        member.
      sizes: the new sizes by the path of a member.
      multiple_of: what sizes that follow from a sparsity are rounded to.

    Raises:
      ValueError: an argument is missing or out of its range, a path matches nothing
        that can go, or all groups would stay whole.
    """
    if (sparsity is None) == (sizes is None):
        raise ValueError(
            "give either sparsity, the fraction of the channels that goes, or sizes, "
            "the number that stays by the path of a leaf"
        )
    if multiple_of < 1:
        raise ValueError(f"multiple_of must be at least 1, got {multiple_of}")
    if sizes is not None:
        chosen = _first_match(groups, sizes)
        for number, size in chosen.items():
            _check_size(groups[number], size)
    else:
        by_path = isinstance(sparsity, Mapping)
        fractions: Any = sparsity if by_path else {".*": sparsity}
        for fraction in fractions.values():
            _check_fraction(fraction)
        chosen = {
            number: _rounded(groups[number].size, 1 - fraction, multiple_of)
            for number, fraction in _first_match(groups, fractions).items()
        }
    smaller = {i: size for i, size in chosen.items() if size < groups[i].size}
    if not smaller:
        raise ValueError(
            "all channels would stay: there are no more of them than multiple_of="
            f"{multiple_of} in any group. Give sizes, or a smaller multiple_of"
        )
    return smaller


def _rounded(size: int, kept: float, multiple_of: int) -> int:
    """Returns a part of a size, rounded to a multiple, of which it is at least one.

    >>> _rounded(1536, 0.5, 128), _rounded(100, 0.5, 8), _rounded(6, 0.5, 8)
    (768, 48, 6)
    """
    multiples = max(int(size * kept / multiple_of + 0.5), 1)
    return min(multiples * multiple_of, size)


def _first_match(groups: ChannelGroups, values: Mapping[str, Any]) -> dict[int, Any]:
    """Returns for each group that can be cut the first value that is meant for it."""
    matched = {
        pattern: [i for i, group in enumerate(groups) if _matches(pattern, group)]
        for pattern in values
    }
    for pattern, numbers in matched.items():
        if all(groups[i].kept for i in numbers):
            raise ValueError(_no_match(groups, pattern, numbers))
    chosen: dict[int, Any] = {}
    for pattern, numbers in matched.items():
        for number in numbers:
            if not groups[number].kept:
                chosen.setdefault(number, values[pattern])
    return chosen


def _matches(pattern: str, group: ChannelGroup) -> bool:
    return any(re.fullmatch(pattern, x.path, re.DOTALL) for x in group.members)


def _no_match(groups: ChannelGroups, pattern: str, numbers: list[int]) -> str:
    """Returns why a pattern has no group that can be cut."""
    if not numbers:
        paths = sorted({member.path for group in groups for member in group.members})
        return (
            f"{pattern!r} matches none of the {len(paths)} leaves with channels. It "
            "must match a whole path, such as "
            f"{next(iter(paths), None)!r}: write '.*' for all"
        )
    reasons = "; ".join(
        f"{groups[i].size} channels of {groups[i].members[0].path!r}: {groups[i].kept}"
        for i in numbers[:8]
    )
    return f"no channels of the leaves of {pattern!r} can be taken out: {reasons}"


def _check_fraction(fraction: float) -> None:
    if not 0 <= fraction < 1:
        raise ValueError(
            "sparsity must be the fraction of the channels that goes, from 0 to less "
            f"than 1, got {fraction}"
        )


def _check_size(group: ChannelGroup, size: int) -> None:
    if not 1 <= size <= group.size:
        raise ValueError(
            f"leaf {group.members[0].path!r} has {group.size} channels along axis "
            f"{group.members[0].axis}: the size that stays must be from "
            f"1 to that, got {size}"
        )
