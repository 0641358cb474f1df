"""Groups of channels (a stand-in until the analysis is merged)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple


class ChannelMember(NamedTuple):
    """Where a group's channels lie in a leaf."""

    path: str
    slices: tuple[tuple[int, int], ...]
    view: tuple[int, ...]
    channel: int
    indices: tuple[int, ...]
    axis: int
    role: Literal["input", "output", "elementwise"]


class ChannelGroup(NamedTuple):
    """Axes of leaves that are the same channels."""

    size: int
    index: tuple[int, ...]
    members: tuple[ChannelMember, ...]
    fixed: str = ""
    kept: str = ""


@dataclass(frozen=True)
class ChannelGroups:
    """All groups of a model."""

    groups: tuple[ChannelGroup, ...]

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> ChannelGroup:
        return self.groups[number]


def channel_groups(fn, params, *args) -> ChannelGroups:
    """Stands in until the analysis is merged."""
    raise NotImplementedError
