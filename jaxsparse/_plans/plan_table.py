"""The table of a plan: its rows and the last one, for all leaves."""

import math
from collections.abc import Sequence

from jaxsparse._plans.leaf_plan import NO_WEIGHT, LeafPlan, pruned_weights
from jaxsparse._trees import fold_with_others, percent_text, shape_text, weights_text


def plan_rows(leaves: Sequence[LeafPlan]) -> list[tuple[str, ...]]:
    """Returns the path, shape and decision of leaves; alike leaves share a row.

    So do leaves that are not arrays, such as the functions in a module of Equinox.
    """
    return fold_with_others(
        (
            (leaf.path, (shape_text(leaf.shape), leaf.decision))
            for leaf in leaves
            if leaf.shape is not None
        ),
        ((leaf.path, ("-", leaf.decision)) for leaf in leaves if leaf.shape is None),
    )


def plan_total(leaves: Sequence[LeafPlan]) -> tuple[str, str, str]:
    """Returns the cells of the last row: weights, pruned leaves, planned sparsity.

    >>> from jaxsparse import NM
    >>> bias = LeafPlan("b", (16,), reason="bias, norm or scalar")
    >>> plan_total([LeafPlan("w", (8, 16), NM(1, 4), axis=1), bias])
    ('total', '144', '1 of 1 pruned: 66.7 % of weights')
    """
    weights = sum(math.prod(leaf.shape) for leaf in leaves if leaf.shape is not None)
    pruned = sum(map(pruned_weights, leaves))
    return (
        "total",
        weights_text(weights),
        f"{count_text(leaves)}: {percent_text(pruned / max(weights, 1))} of weights",
    )


def count_text(leaves: Sequence[LeafPlan]) -> str:
    """Returns how many leaves are pruned of those that could be, as text."""
    pruned = sum(leaf.pattern is not None for leaf in leaves)
    dense = sum(
        leaf.pattern is None and could_be_pruned(leaf.shape, leaf.reason)
        for leaf in leaves
    )
    return f"{pruned} of {pruned + dense} pruned"


def could_be_pruned(shape: tuple[int, ...] | None, reason: str) -> bool:
    """Returns whether a dense leaf could be pruned by a rule: it looks like a weight.

    It has two or more axes, and is not known to be something else.
    """
    return len(shape or ()) > 1 and reason not in NO_WEIGHT
