"""Checks that the axes of a plan are those of the statistics."""

from jaxsparse._calibration.matrices import LayerMatrices
from jaxsparse._patterns import NM, Block, PerOutput
from jaxsparse._plans import LeafPlan


def check_layer(leaf: LeafPlan, matrices: LayerMatrices) -> None:
    """Raises unless groups, blocks and outputs are the same by plan and statistics.

    Raises:
      ValueError: groups or blocks lie along other axes than the last input and the last
        output of the statistics, blocks cross feature groups, or outputs differ.
    """
    if isinstance(leaf.pattern, NM | Block) and matrices.inputs[-1] != leaf.axis:
        raise ValueError(
            f"the statistics of leaf {leaf.path!r} of shape {leaf.shape} are for "
            f"groups along axis {matrices.inputs[-1]}, but it is planned "
            f"{leaf.decision!r}: collect them with the same plan"
        )
    outputs = set(range(len(matrices.shape))) - set(matrices.inputs)
    if isinstance(leaf.pattern, PerOutput) and set(leaf.rows) != outputs:
        raise ValueError(
            f"leaf {leaf.path!r} of shape {leaf.shape} has outputs along axes "
            f"{sorted(outputs)} by its statistics, but along {list(leaf.rows)} by the "
            "plan: plan with fn, without an axis in the rule"
        )
    width = block_width(leaf)
    if width == 1:
        return
    if not matrices.outputs or matrices.outputs[-1] != leaf.output[-1]:
        raise ValueError(
            f"leaf {leaf.path!r} of shape {leaf.shape} is planned {leaf.decision!r}, "
            f"but its statistics have outputs along axes {list(matrices.outputs)}: "
            "collect them with the same plan"
        )
    if matrices.outputs_per_problem % width:
        raise ValueError(
            f"leaf {leaf.path!r} of shape {leaf.shape} is planned {leaf.decision!r}, "
            f"but each of its {matrices.groups} feature groups has "
            f"{matrices.outputs_per_problem} outputs: plan blocks that fit into them"
        )


def block_width(leaf: LeafPlan) -> int:
    """Returns the number of outputs that a block of the pattern spans."""
    match leaf.pattern:
        case NM(m=m, transposable=True):
            return m
        case Block(shape=(_, width)):
            return width
    return 1
