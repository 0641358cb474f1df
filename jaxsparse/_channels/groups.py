"""Channel groups: which axes of which leaves are the same channels."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, overload

from jaxsparse._trees import shape_text, table


#: What a leaf does with channels: it contracts them, a product gives them, or neither.
ChannelRole = Literal["input", "output", "elementwise"]


class ChannelMember(NamedTuple):
    """Where the channels of a group lie in a leaf.

    `leaf[slices].reshape(view)` has the channels along its axis `channel`, and along
    its axes `indices` what chooses among the permutations of the group.

    Attributes:
      path: canonical path of the leaf.
      slices: for each axis of the leaf `(start, stop)`.
      view: the sizes of the factors of all axes, major to minor.
      channel: the axis of the view that has the channels.
      indices: for each of the sizes in the group's `index`, the axis of the view.
      axis: the axis of the leaf that the channels lie in.
      role: `"input"` if a matmul or convolution contracts the channels, `"output"` if
        it gives them, `"elementwise"` for biases, norms and batch statistics.
    """

    path: str
    slices: tuple[tuple[int, int], ...]
    view: tuple[int, ...]
    channel: int
    indices: tuple[int, ...]
    axis: int
    role: ChannelRole

    def __str__(self) -> str:
        """Returns the path and the axis, and where in the axis the channels lie."""
        start, stop = self.slices[self.axis]
        return f"{self.path}[{self.axis}, {start}:{stop}]"

    @property
    def stride(self) -> int:
        """How far apart neighbouring channels lie in their axis of the leaf."""
        minor_axes = [stop - start for start, stop in self.slices[self.axis + 1 :]]
        return math.prod(self.view[self.channel + 1 :]) // math.prod(minor_axes)


@dataclass(frozen=True)
class ChannelGroup:
    """Axes of leaves that are the same channels.

    They can only be permuted, or taken out, together.

    Attributes:
      size: the number of channels.
      index: the sizes of the axes that have separate permutations: `()` for one
        permutation, `(30,)` for stacked layers, `(3,)` for key and value heads.
      members: where the channels lie.
      fixed: why the channels can't be permuted; `""` if they can.
      kept: why no channel can be taken out; `""` if one can.
    """

    size: int
    index: tuple[int, ...]
    members: tuple[ChannelMember, ...]
    fixed: str
    kept: str


@dataclass(frozen=True)
class ChannelGroups(Sequence[ChannelGroup]):
    """All channel groups of a model, numbered from 0. `print` shows them as a table.

    Attributes:
      groups: the groups, in the order of their first members.
    """

    groups: tuple[ChannelGroup, ...]

    @overload
    def __getitem__(self, i: int) -> ChannelGroup: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[ChannelGroup, ...]: ...
    def __getitem__(self, i: int | slice) -> ChannelGroup | tuple[ChannelGroup, ...]:
        """Returns a group by its number."""
        return self.groups[i]

    def __len__(self) -> int:
        """Returns the number of groups."""
        return len(self.groups)

    def __iter__(self) -> Iterator[ChannelGroup]:
        """Iterates over the groups in order."""
        return iter(self.groups)

    def of(self, path: str, axis: int) -> list[ChannelGroup]:
        """Returns the groups that have channels in one axis of a leaf.

        Args:
          path: the canonical path of the leaf.
          axis: the axis, from 0.
        """
        return [
            group
            for group in self.groups
            if any(x.path == path and x.axis == axis for x in group.members)
        ]

    def __str__(self) -> str:
        """Returns the table of the groups, one a line."""
        rows = [(str(i), *_cells(group)) for i, group in enumerate(self.groups)]
        return table(("group", "channels", "members", "permuted", "taken out"), rows)


#: A line of the table names so many members.
_NAMED_MEMBERS = 3


def _cells(group: ChannelGroup) -> tuple[str, ...]:
    """Returns sizes, members, and whether channels can be permuted and taken out."""
    names = list(dict.fromkeys(f"{x.path}[{x.axis}]" for x in group.members))
    more = len(names) - _NAMED_MEMBERS
    members = ", ".join(names[:_NAMED_MEMBERS]) + (f" and {more} more" * (more > 0))
    return (
        shape_text((*group.index, group.size)),
        members,
        group.fixed or "yes",
        "no" if group.fixed else group.kept or "yes",
    )
