"""Pruned leaves whose n:m groups lie along the channels of a group."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from jaxsparse._channels.groups import ChannelGroup, ChannelMember
from jaxsparse._channels.member_view import read_member
from jaxsparse._patterns import NM
from jaxsparse._plans import Plan


class Consumers(NamedTuple):
    """The pruned leaves that keep other weights if the channels are permuted.

    Attributes:
      members: where the channels lie in these leaves; at least one.
      pattern: their pattern.
      reason: why the channels are not to be permuted; `""` if they can be.
    """

    members: tuple[ChannelMember, ...]
    pattern: NM
    reason: str

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the leaves."""
        return tuple(dict.fromkeys(member.path for member in self.members))


def find_consumers(group: ChannelGroup, plan: Plan) -> Consumers | None:
    """Returns the pruned leaves whose n:m groups lie along the channels of a group.

    Returns:
      The leaves, or None if there are none.
    """
    members: list[ChannelMember] = []
    patterns: list[NM] = []
    split = ""
    for member in group.members:
        leaf = plan.by_path.get(member.path)
        pattern = None if leaf is None or leaf.axis != member.axis else leaf.pattern
        if not isinstance(pattern, NM) or pattern.n == pattern.m:
            continue
        start = member.slices[member.axis][0]
        if member.stride == 1 and group.size % pattern.m == start % pattern.m == 0:
            members.append(member)
            patterns.append(pattern)
        elif member.stride % pattern.m:
            split = f"groups of {pattern.m} in {member.path!r} hold other channels too"
    if not members:
        return None
    reason = group.fixed or split or _reason_of_patterns(patterns)
    return Consumers(tuple(members), patterns[0], reason)


def find_all_consumers(
    groups: Sequence[ChannelGroup], plan: Plan
) -> dict[int, Consumers]:
    """Returns the consumers of each group that has some, by its number.

    Raises:
      ValueError: no group with consumers can be permuted.
    """
    maybe = {i: find_consumers(group, plan) for i, group in enumerate(groups)}
    by_number = {
        i: consumers for i, consumers in maybe.items() if consumers is not None
    }
    if all(consumers.reason for consumers in by_number.values()):
        reasons = [f"group {i}: {group.reason}" for i, group in by_number.items()]
        raise ValueError(
            "no channels can be permuted so that n:m pruning keeps more: "
            + ("; ".join(reasons) or _reason_of_plan(plan))
        )
    return by_number


def _reason_of_plan(plan: Plan) -> str:
    """Returns why no group has consumers."""
    patterns = {leaf.pattern for leaf in plan.sparse}
    if any(isinstance(pattern, NM) for pattern in patterns):
        return "no n:m groups of the plan lie along channels of a group"
    others = ", ".join(sorted(map(str, patterns)))
    return (
        f"the plan has no n:m pattern, but {others}. Plan '2:4', for example, or leave "
        "the channels as they are"
    )


def can_permute(groups: Iterable[ChannelGroup], plan: Plan) -> bool:
    """Returns whether `permute_channels` would permute some channels."""
    of_groups = (find_consumers(group, plan) for group in groups)
    return any(
        consumers is not None and not consumers.reason for consumers in of_groups
    )


def _reason_of_patterns(patterns: Sequence[NM]) -> str:
    if any(pattern.transposable for pattern in patterns):
        return "transposable patterns have groups along outputs too"
    different = sorted(map(str, set(patterns)))
    if len(different) > 1:
        return f"its consumers are pruned {' and '.join(different)}"
    return ""


def member_scores(
    scores: Mapping[str, Any], member: ChannelMember, *, magnitude: bool
) -> Float32[np.ndarray, "problem channel row"]:
    """Returns the scores of the weights of each channel in a consumer.

    Args:
      scores: the scores of leaves by path.
      member: where the channels lie in the consumer.
      magnitude: whether the scores are weights, whose magnitude counts.

    Returns:
      The scores, a problem for each of the group's permutations.

    Raises:
      ValueError: a score is not finite.
    """
    leaf = np.asarray(scores[member.path], np.float32)
    first = (*member.indices, member.channel)
    view = np.moveaxis(np.asarray(read_member(leaf, member)), first, range(len(first)))
    *index, size = view.shape[: len(first)]
    table = view.reshape(math.prod(index), size, math.prod(view.shape[len(first) :]))
    if not np.isfinite(table).all():
        raise ValueError(
            f"leaf {member.path!r} of shape {leaf.shape} has scores that are not "
            "finite, so its channels can't be compared: replace those weights, or keep "
            "the leaf dense by a rule"
        )
    return np.abs(table) if magnitude else table
