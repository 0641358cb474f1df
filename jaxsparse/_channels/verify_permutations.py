"""Whether a function is the same with permuted channels, or else for which not."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxsparse._channels.channel_moves import move_leaves, moves_of
from jaxsparse._channels.groups import ChannelGroup
from jaxsparse._channels.same_outputs import Outputs, relative_difference


def verify_permutations(
    outputs: Outputs,
    leaves: Mapping[str, Any],
    groups: Sequence[ChannelGroup],
    permutations: Mapping[int, np.ndarray],
) -> None:
    """Raises if a function gives other outputs with permuted leaves.

    Args:
      outputs: the outputs of the function.
      leaves: the leaves by path.
      groups: the channel groups.
      permutations: the permutations of some of them, by their number.

    Raises:
      ValueError: outputs differ by more than rounding. The error names the group.
    """
    before, numbers = outputs.of(leaves), [*permutations]

    def change(count: int) -> float:
        """Returns how much the first permutations change the outputs."""
        some = {number: permutations[number] for number in numbers[:count]}
        permuted = move_leaves(leaves, moves_of(groups, some))
        return relative_difference(before, outputs.of(permuted))

    right, wrong = 0, len(numbers)  # so many change nothing, and so many do
    if (difference := change(wrong)) <= outputs.rounding:
        return
    while wrong - right > 1:
        middle = (right + wrong) // 2
        if change(middle) <= outputs.rounding:
            right = middle
        else:
            wrong = middle
    number = numbers[right]
    members = ", ".join(map(str, groups[number].members))
    raise ValueError(
        f"the outputs of fn change by {difference:.1g} of their norm, more than by "
        f"rounding ({outputs.rounding:.1g}), with the channels of group {number} "
        f"permuted: {members}. Leave this group out of `groups`, and please report it"
    )
