"""What `permute_channels` returns."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxsparse._channels.channel_moves import inverted, move_tree, moves_of
from jaxsparse._channels.groups import ChannelGroups
from jaxsparse._trees import (
    PyTree,
    array_shapes,
    flatten_with_keys,
    percent_text,
    shape_text,
    table,
)


class PermutedGroup(NamedTuple):
    """What the permutations of a channel group gain.

    The shares are of the sum of the scores of all weights of its consumers.

    Attributes:
      leaves: the paths of its consumers, the pruned leaves whose n:m groups lie along
        its channels.
      before: the share that the best n:m mask keeps with the channels as they were.
      after: the share that it keeps with the channels permuted.
      rows: the share that is kept if each output is pruned freely at the same density.
      reason: why the channels are not permuted; `""` if they are.
    """

    leaves: tuple[str, ...]
    before: float = 0.0
    after: float = 0.0
    rows: float = 0.0
    reason: str = ""

    @property
    def efficacy(self) -> float:
        """How much of the way from `before` to `rows` is gone, from 0 to 1."""
        return _share(self.after - self.before, self.rows - self.before)


class PermutationResult(NamedTuple):
    """Parameters with permuted channels. `print` shows what each group gains.

    Attributes:
      params: the parameters, which are the same function.
      permutations: the permutations by the number of the channel group, int32, of shape
        `[*index, channel]`: new channel `i` is old channel `permutations[..., i]`.
      gains: what is gained, by the number of the channel group.
      groups: all channel groups.
    """

    params: PyTree
    permutations: Mapping[int, np.ndarray]
    gains: Mapping[int, PermutedGroup]
    groups: ChannelGroups

    def permute(self, tree: PyTree) -> PyTree:
        """Moves the channels of what was made for the old parameters.

        Args:
          tree: any tree that holds parameters, masks (bool or packed), moments of an
            optimizer or statistics of inputs, in any nesting. What belongs to no
            parameter stays as it is.

        Returns:
          The tree for `params`.

        Raises:
          ValueError: an array that belongs to a parameter has another layout, such as
            the factored moments of `optax.adafactor`, the accumulators of `optax.sm3`,
            or a compressed weight.
        """
        return self._move(tree, inverse=False)

    def invert(self, tree: PyTree) -> PyTree:
        """Moves the channels back: the inverse of `permute`, exactly.

        Args:
          tree: any tree that holds what belongs to `params`.

        Returns:
          The tree with the channels in their old order.

        Raises:
          ValueError: as `permute`.
        """
        return self._move(tree, inverse=True)

    def _move(self, tree: PyTree, *, inverse: bool) -> PyTree:
        leaves, paths = flatten_with_keys(self.params)
        moves = moves_of(self.groups, self.permutations)
        moves = inverted(moves) if inverse else moves
        return move_tree(tree, moves, array_shapes(leaves.by_path), paths)

    def __str__(self) -> str:
        """Returns a line for each group that has consumers."""
        rows = [
            (
                str(number),
                shape_text((*self.groups[number].index, self.groups[number].size)),
                _leaves_text(gain.leaves),
                *_gain_cells(gain),
            )
            for number, gain in self.gains.items()
        ]
        header = ("group", "channels", "consumers", "kept", "permuted", "efficacy")
        return table(header, rows)


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _leaves_text(leaves: tuple[str, ...]) -> str:
    more = f" and {len(leaves) - 2} more" if len(leaves) > 2 else ""
    return ", ".join(leaves[:2]) + more


def _gain_cells(gain: PermutedGroup) -> tuple[str, ...]:
    if gain.reason:
        return ("", "", f"not permuted: {gain.reason}")
    return tuple(map(percent_text, (gain.before, gain.after, gain.efficacy)))
