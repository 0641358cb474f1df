"""Checks compressed leaves against a plan."""

from jaxsparse._compressed.check_arrays import array_fault, describe_array_fault
from jaxsparse._compressed.compressed_array import Compressed
from jaxsparse._plans import LeafPlan


def is_as_planned(leaf: Compressed, planned: LeafPlan) -> bool:
    """Returns whether the leaf has the pattern and the group axis of its plan."""
    return (leaf.pattern, leaf.axis + leaf.ndim) == (planned.pattern, planned.axis)


def describe_storage(leaf: Compressed) -> str:
    """Returns a text such as `2:4 along axis 0`, or `2:4 along axis 0 in int8`."""
    text = f"{leaf.pattern} along axis {leaf.axis + leaf.ndim}"
    return f"{text} in {leaf.values.dtype}" if leaf.is_quantized else text


def plan_mismatch(path: str, leaf: Compressed, planned: LeafPlan) -> str:
    """Returns how a compressed leaf differs from its plan, or an empty string."""
    if not is_as_planned(leaf, planned):
        return (
            f"leaf {path!r} of shape {leaf.shape} is compressed "
            f"{describe_storage(leaf)}, but its plan is {planned.decision!r}: give the "
            "plan that it was compressed by"
        )
    if fault := array_fault(leaf):
        return describe_array_fault(leaf, f"leaf {path!r}", fault)
    return ""
