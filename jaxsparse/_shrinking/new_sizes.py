"""How many channels of each group are kept."""

import re
from collections.abc import Mapping
from typing import Any

from jaxsparse._channels import ChannelGroup, ChannelGroups
from jaxsparse._trees import require_kind


#: A value for some groups. A key is the number of a group, or a regular expression that
#: must match the whole path of one of its leaves.
FractionByGroup = Mapping[str, float] | Mapping[int, float]
SizeByGroup = Mapping[str, int] | Mapping[int, int]


def new_sizes(
    groups: ChannelGroups,
    sparsity: float | FractionByGroup | None,
    sizes: SizeByGroup | None,
    multiple_of: int,
) -> dict[int, int]:
    """Returns the new sizes of the groups that lose channels, by number.

    Args:
      groups: all groups.
      sparsity: the fraction of the channels that goes, or fractions of some groups.
      sizes: the new sizes of some groups.
      multiple_of: what sizes that follow from a sparsity are rounded to.

    Raises:
      ValueError: an argument is missing or out of its range, a key matches nothing
        that can go, or all groups would stay whole.
      TypeError: `groups` are not channel groups.
    """
    remedy = "give channel_groups(fn, params, *args)"
    require_kind("shrink_params", groups, (ChannelGroups,), remedy)
    if (sparsity is None) == (sizes is None):
        raise ValueError(
            "give either sparsity, the fraction of the channels that goes, or sizes, "
            "the number that stays in some groups"
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


def _first_match(
    groups: ChannelGroups, values: FractionByGroup | SizeByGroup
) -> dict[int, Any]:
    """Returns for each group that can be cut the first value that is meant for it."""
    chosen: dict[int, Any] = {}
    for key, value in values.items():
        numbers = [i for i, group in enumerate(groups) if _is_meant(key, i, group)]
        if all(groups[i].kept for i in numbers):
            raise ValueError(_no_match(groups, key, numbers))
        for number in numbers:
            if not groups[number].kept:
                chosen.setdefault(number, value)
    return chosen


def _is_meant(key: str | int, number: int, group: ChannelGroup) -> bool:
    if isinstance(key, int):
        return key == number
    return any(re.fullmatch(key, x.path, re.DOTALL) for x in group.members)


def _no_match(groups: ChannelGroups, key: str | int, numbers: list[int]) -> str:
    """Returns why a key is meant for no group that can be cut."""
    if not numbers:
        paths = sorted({member.path for group in groups for member in group.members})
        return (
            f"{key!r} is none of the {len(groups)} groups, and matches none of their "
            f"{len(paths)} leaves. A regular expression must match a whole path, such "
            f"as {next(iter(paths), None)!r}: write '.*' for all"
        )
    reasons = "; ".join(
        f"{groups[i].size} channels of {groups[i].members[0].path!r}: {groups[i].kept}"
        for i in numbers[:8]
    )
    return f"no channels of the groups of {key!r} can be taken out: {reasons}"


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
