"""Reports of what was taken out: the old and the new shapes and bytes of leaves."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxsparse._channels import ChannelGroup
from jaxsparse._trees import (
    Tabular,
    bytes_text,
    fold,
    is_array,
    shape_text,
    weights_text,
)


#: What the channels of a member are to its leaf.
_WORDS = {"input": "inputs", "output": "outputs", "elementwise": "channels"}


@dataclass(frozen=True)
class LeafShrinkage:
    """One leaf of a shrink report.

    Attributes:
      path: the canonical path.
      shape: the leaf's shape before.
      new_shape: its shape now.
      channels: what went, along which axes, in words; empty if nothing did.
      itemsize: the bytes of an element.
    """

    path: str
    shape: tuple[int, ...]
    new_shape: tuple[int, ...]
    channels: str
    itemsize: int


@dataclass(frozen=True)
class ShrinkReport(Tabular):
    """A report on the leaves that lost channels, which prints as a table.

    The last line has all leaves that are arrays, whether or not they lost any.

    Attributes:
      leaves: a `LeafShrinkage` for each leaf that is an array.
    """

    leaves: tuple[LeafShrinkage, ...]

    def __iter__(self) -> Iterator[LeafShrinkage]:
        return iter(self.leaves)

    @property
    def nbytes(self) -> int:
        """The bytes of all leaves before."""
        return sum(math.prod(leaf.shape) * leaf.itemsize for leaf in self.leaves)

    @property
    def new_nbytes(self) -> int:
        """The bytes of all leaves now."""
        return sum(math.prod(leaf.new_shape) * leaf.itemsize for leaf in self.leaves)

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        rows = [
            (
                leaf.path,
                (shape_text(leaf.shape), shape_text(leaf.new_shape), leaf.channels),
            )
            for leaf in self.leaves
            if leaf.channels
        ]
        return ("leaf", "shape", "now", "channels"), fold(rows)

    def _total(self) -> tuple[str, ...]:
        count = lambda shapes: weights_text(sum(map(math.prod, shapes)))
        return (
            "total",
            count(leaf.shape for leaf in self.leaves),
            count(leaf.new_shape for leaf in self.leaves),
            bytes_text(self.new_nbytes, self.nbytes),
        )


def report_leaves(
    before: Mapping[str, Any], after: Mapping[str, Any], cut: Sequence[ChannelGroup]
) -> ShrinkReport:
    """Returns the report on leaves by path, of which groups were cut."""
    words: dict[str, list[str]] = {}
    for member in (member for group in cut for member in group.members):
        text = f"{_WORDS[member.role]} along axis {member.axis}"
        if text not in (said := words.setdefault(member.path, [])):
            said.append(text)
    return ShrinkReport(
        tuple(
            LeafShrinkage(
                path,
                tuple(leaf.shape),
                tuple(after[path].shape),
                ", ".join(words.get(path, ())),
                leaf.dtype.itemsize,
            )
            for path, leaf in before.items()
            if is_array(leaf)
        )
    )
