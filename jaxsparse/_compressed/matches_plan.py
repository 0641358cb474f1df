"""Compressed leaves beside what a plan says of them."""

from typing import Any

from jaxsparse._compressed.compressed_array import (
    Compressed,
    compressed_shapes,
)
from jaxsparse._plans import LeafPlan


def is_as_planned(leaf: Compressed, planned: LeafPlan) -> bool:
    """Whether pattern and axis are those of the plan."""
    return (leaf.pattern, leaf.axis + leaf.ndim) == (planned.pattern, planned.axis)


def describe_storage(leaf: Compressed) -> str:
    """`2:4 along axis 0`."""
    return f"{leaf.pattern} along axis {leaf.axis + leaf.ndim}"


def plan_mismatch(path: str, leaf: Compressed, planned: LeafPlan) -> str:
    """Why a compressed leaf is not what the plan says, or nothing."""
    if not is_as_planned(leaf, planned):
        return (
            f"leaf {path!r} of shape {leaf.shape} is compressed, "
            f"{describe_storage(leaf)}; the plan says {planned.decision!r}: give the "
            "plan that it was compressed by"
        )
    wanted = compressed_shapes(leaf.shape, leaf.pattern, leaf.axis)
    there: tuple[Any, ...] = tuple(leaf.values.shape), tuple(leaf.indices.shape)
    if there != wanted:
        return (
            f"leaf {path!r} of shape {leaf.shape} is compressed, with values and "
            f"indices of shapes {there}; {wanted} belong together"
        )
    return ""
