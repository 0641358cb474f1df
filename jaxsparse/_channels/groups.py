"""Channel groups: which axes of which leaves are the same channels."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, overload

from jaxsparse._trees import alike, shape_text, table, without_numbers


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

    Groups of layers whose names differ only by numbers share a row.

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
        """Returns the table of the groups; those of alike layers share a line."""
        classes: dict[Any, list[_Line]] = {}
        for number, group in enumerate(self.groups):
            line = _line(number, group)
            common = tuple(map(without_numbers, line.paths)), line.axes, line.cells
            classes.setdefault(common, []).append(line)
        rows = dict(row for lines in classes.values() for row in _folded(lines))
        header = ("group", "channels", "members", "permuted", "taken out")
        return table(header, [rows[number] for number in sorted(rows)])


class _Line(NamedTuple):
    """A line of the table: a group, and its members by paths and axes."""

    number: int
    paths: tuple[str, ...]
    axes: tuple[int, ...]
    cells: tuple[str, ...]


def _line(number: int, group: ChannelGroup) -> _Line:
    members = dict.fromkeys((x.path, x.axis) for x in group.members)
    paths, axes = zip(*members, strict=True)
    size = shape_text((*group.index, group.size))
    taken_out = "no" if group.fixed else group.kept or "yes"
    return _Line(number, paths, axes, (size, group.fixed or "yes", taken_out))


def _folded(lines: Sequence[_Line]) -> list[tuple[int, tuple[str, ...]]]:
    """Returns one row for groups of alike members, or else a row for each.

    Rows have the number of their first group.
    """
    names = [
        [*alike(dict.fromkeys(line.paths[i] for line in lines))]
        for i in range(len(lines[0].axes))
    ]
    if len(lines) > 1 and all(len(of_member) == 1 for of_member in names):
        pairs = zip((name for (name,) in names), lines[0].axes, strict=True)
        members = {f"{name}[{axis}]": 1 for name, axis in pairs}
        return [(lines[0].number, _row(lines[0], members, len(lines)))]
    return [(line.number, _row(line, _members(line), 1)) for line in lines]


def _members(line: _Line) -> dict[str, int]:
    """Returns how many members of one group each name stands for."""
    pairs = zip(line.paths, line.axes, strict=True)
    names = alike({f"{path}[{axis}]": axis for path, axis in pairs})
    return {name: len(members) for name, members in names.items()}


#: A line of the table names so many members.
_NAMED_MEMBERS = 3


def _row(line: _Line, members: Mapping[str, int], count: int) -> tuple[str, ...]:
    """Returns the row of a group and `count - 1` more groups."""
    size, *reasons = line.cells
    others = sum([*members.values()][_NAMED_MEMBERS:])
    return (
        str(line.number) + _more(count - 1),
        size,
        ", ".join([*members][:_NAMED_MEMBERS]) + _more(others),
        *reasons,
    )


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""
