"""Checks compressed leaves against a plan."""

import jax.numpy as jnp

from jaxsparse._compressed.compressed_array import (
    Compressed,
    compressed_shapes,
)
from jaxsparse._plans import LeafPlan


def is_as_planned(leaf: Compressed, planned: LeafPlan) -> bool:
    """Returns whether the leaf has the pattern and the group axis of its plan."""
    return (leaf.pattern, leaf.axis + leaf.ndim) == (planned.pattern, planned.axis)


def describe_storage(leaf: Compressed) -> str:
    """Returns a text such as `2:4 along axis 0`."""
    return f"{leaf.pattern} along axis {leaf.axis + leaf.ndim}"


def plan_mismatch(path: str, leaf: Compressed, planned: LeafPlan) -> str:
    """Returns how a compressed leaf differs from its plan, or an empty string."""
    if not is_as_planned(leaf, planned):
        return (
            f"leaf {path!r} of shape {leaf.shape} is compressed "
            f"{describe_storage(leaf)}, but its plan is {planned.decision!r}: give the "
            "plan that it was compressed by"
        )
    expected = compressed_shapes(leaf.shape, leaf.pattern, leaf.axis)
    shapes = tuple(leaf.values.shape), tuple(leaf.indices.shape)
    if shapes != expected:
        return (
            f"leaf {path!r} of shape {leaf.shape} is compressed with values and "
            f"indices of shapes {shapes}, expected {expected}: map over values alone, "
            "as in dataclasses.replace(leaf, values=...)"
        )
    if leaf.indices.dtype != jnp.uint8:
        return (
            f"leaf {path!r} of shape {leaf.shape} is compressed with indices of "
            f"{leaf.indices.dtype}, expected uint8: map over values alone, as in "
            "dataclasses.replace(leaf, values=...)"
        )
    return ""
