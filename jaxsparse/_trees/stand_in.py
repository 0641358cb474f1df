"""Nodes that stand for one array each, such as compressed weights."""

from typing import ClassVar


class StandIn:
    """Base class of a node that stands for an array of another shape than its parts.

    A function that takes the parts for leaves would prune or train the wrong arrays, so
    `flatten` refuses such nodes unless `is_leaf` says that they are leaves.

    Attributes:
      shape: the shape of the array.
      refusal: how an error goes on after the path and the shape, with the remedy.
    """

    shape: tuple[int, ...] | property
    refusal: ClassVar[str]
