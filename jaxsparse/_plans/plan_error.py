"""Errors about plans, whose fields other interfaces than Python put into words."""

from collections.abc import Mapping
from typing import Literal


#: The kinds of remedies for a leaf that stays dense and for a tree that is refused.
Remedy = Literal[
    "axis",
    "fn_or_axis",
    "rule_axis",
    "rules",
    "sizes",
    "m",
    "block",
    "held",
    "head",
    "router",
    "adapter",
]

#: The remedies in Python's words.
PYTHON_REMEDIES: Mapping[Remedy, str] = {
    "axis": "pass Rule(..., axis=...)",
    "fn_or_axis": "plan with fn=, or Rule(..., axis=...)",
    "rule_axis": "narrow the rule's path or correct its axis",
    "rules": (
        "Plan with rules that match a weight, fn=... or axis=... where names do not "
        "determine the axis, and sizes=None where the size rule keeps it dense."
    ),
    "sizes": "pass Rule(..., sizes=None)",
    "m": "pass Rule(..., pattern) with another m",
    "block": "pass Rule(..., Block(...)) of another shape",
    "held": "give the arrays that it holds, in Penzai those of pz.unbind_params",
    "head": "pass dense_head=False",
    "router": "pass dense_router=False",
    "adapter": "pass dense_adapter=False",
}


class PlanError(ValueError):
    """A tree cannot be planned as requested, or does not fit a plan.

    Its text is the problem followed by the remedy in Python's words.

    Attributes:
      problem: what is wrong.
      remedy: the kind of the remedy; None if `problem` says everything.
      path: the path of the leaf; None if it concerns the whole tree.
    """

    def __init__(
        self, problem: str, remedy: Remedy | None = None, path: str | None = None
    ):
        super().__init__(problem, remedy, path)
        self.problem = problem
        self.remedy: Remedy | None = remedy
        self.path = path

    def __str__(self) -> str:
        return self.describe(PYTHON_REMEDIES)

    def describe(self, remedies: Mapping[Remedy, str]) -> str:
        """Returns the text with a remedy from a table of other words."""
        if self.remedy is None:
            return self.problem
        return f"{self.problem}: {remedies[self.remedy]}"
