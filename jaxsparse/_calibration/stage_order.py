"""Which leaves are pruned in which stage."""

import re
from collections.abc import Sequence

from jaxsparse._patterns import Unstructured
from jaxsparse._plans import LeafPlan, Plan, expression_meant


def number_stages(plan: Plan, boundaries: Sequence[str]) -> dict[str, int]:
    """Returns the number of the first boundary that matches each leaf, by path.

    Args:
      plan: the plan of the leaves.
      boundaries: regular expressions that match whole paths.

    Raises:
      TypeError: there is one boundary, not a list.
      ValueError: a boundary matches no leaf, none matches a leaf that is pruned, or
        leaves of several stages share a threshold.
    """
    _check_boundaries(plan, boundaries)
    return {leaf.path: _stage_number(leaf, boundaries) for leaf in plan.sparse}


def _check_boundaries(plan: Plan, boundaries: Sequence[str]) -> None:
    if isinstance(boundaries, str):
        raise TypeError(
            f"boundaries must be a list of regular expressions, got {boundaries!r}"
        )
    for leaf in plan.sparse:
        match leaf.pattern:
            case Unstructured(across_leaves=True):
                raise ValueError(
                    f"leaf {leaf.path!r} of shape {leaf.shape} is planned "
                    f"{leaf.decision!r}, and one threshold for leaves of several "
                    "stages can't be computed stage by stage: plan a sparsity for each "
                    "leaf, with across_leaves=False"
                )
    for boundary in boundaries:
        if meant := expression_meant(boundary, [leaf.path for leaf in plan.sparse]):
            raise ValueError(
                f"boundary {boundary!r} does not match the leaves of this name, "
                f"because it is read as a regular expression: write {meant!r}"
            )
        if not any(re.fullmatch(boundary, leaf.path) for leaf in plan.sparse):
            raise ValueError(
                f"boundary {boundary!r} matches none of the {len(plan.sparse)} leaves "
                "that are pruned. It must match a whole path, such as "
                f"{plan.sparse[0].path!r}"
            )


def _stage_number(leaf: LeafPlan, boundaries: Sequence[str]) -> int:
    for number, boundary in enumerate(boundaries):
        if re.fullmatch(boundary, leaf.path):
            return number
    raise ValueError(
        f"no boundary matches leaf {leaf.path!r} of shape {leaf.shape}, which is "
        f"planned {leaf.decision!r}: add one that matches the whole path, or keep the "
        "leaf dense"
    )
