"""The command `check`."""

from typing import Any

import typer

from jaxsparse._plans import (
    LeafPlan,
    Plan,
)
from jaxsparse._reports import check_sparsity
from jaxsparse.cli.console import print_json, print_line, with_progress
from jaxsparse.cli.inspect import FileArgument, JsonOption
from jaxsparse.cli.leaves import Leaves, as_wide_as, open_leaves
from jaxsparse.cli.options import (
    AnySizeOption,
    HeadOption,
    LayoutOption,
    PatternOption,
    RuleOption,
    plan_leaves,
)


def check(
    file: FileArgument,
    pattern: PatternOption = "2:4",
    layout: LayoutOption = None,
    rule: RuleOption = None,
    any_size: AnySizeOption = False,
    head: HeadOption = False,
    json: JsonOption = False,
) -> None:
    """Say, by the exit code too, whether a file is sparse.

    It is where every leaf that would be pruned obeys its pattern already.
    """
    leaves = open_leaves(file)
    plan = plan_leaves(leaves, pattern, layout, rule, any_size=any_size, head=head)
    planned = {leaf.path: leaf for leaf in plan.sparse}
    faults = {
        name: fault
        for name in with_progress([*planned], "check")
        if (fault := _fault(leaves, planned[name]))
    }
    if json:
        print_json(_as_json(leaves, plan, faults))
    elif faults:
        print_line(f"{len(faults)} of {len(planned)} leaves do not obey:")
        for fault in faults.values():
            print_line(fault)
    else:
        print_line(f"all {len(planned)} leaves obey")
    raise typer.Exit(1 if faults else 0)


def _fault(leaves: Leaves, leaf: LeafPlan) -> str:
    """What is wrong with a leaf, or nothing."""
    weight = leaves.read(leaf.path)
    try:
        with as_wide_as(weight.dtype):
            check_sparsity({leaf.path: weight}, Plan((leaf,)))
    except ValueError as error:
        return str(error).split("\n", 1)[1].strip()
    return ""


def _as_json(leaves: Leaves, plan: Plan, faults: dict[str, str]) -> dict[str, Any]:
    return {
        "file": str(leaves.path),
        "obeys": not faults,
        "leaves": [
            {"leaf": leaf.path, "plan": leaf.decision, "fault": faults.get(leaf.path)}
            for leaf in plan.leaves
        ],
    }
