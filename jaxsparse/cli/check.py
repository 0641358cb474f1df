"""The command `check`."""

from collections.abc import Mapping
from typing import Any

import typer

from jaxsparse._plans import (
    LeafPlan,
    Plan,
)
from jaxsparse._reports import SparsityError, check_sparsity
from jaxsparse.cli.console import print_json, print_line, with_progress
from jaxsparse.cli.inspect import FileArgument, JsonOption
from jaxsparse.cli.leaves import Leaves, open_leaves, x64_if_needed
from jaxsparse.cli.options import (
    AdapterOption,
    AnySizeOption,
    HeadOption,
    LayoutOption,
    PatternOption,
    RouterOption,
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
    router: RouterOption = False,
    adapter: AdapterOption = False,
    json: JsonOption = False,
) -> None:
    """Check that every tensor that would be pruned has its pattern already.

    The exit code is 0 if all do, and 1 if one does not.
    """
    leaves = open_leaves(file)
    plan = plan_leaves(
        leaves,
        pattern,
        layout,
        rule,
        any_size=any_size,
        head=head,
        router=router,
        adapter=adapter,
    )
    planned = {leaf.path: leaf for leaf in plan.sparse}
    faults: dict[str, str] = {}
    for name in with_progress([*planned], "check"):
        faults |= _faults(leaves, planned[name])
    if json:
        print_json(_as_json(leaves, plan, faults))
    elif faults:
        print_line(
            f"{len(faults)} of {len(planned)} tensors are not sparse as planned:"
        )
        for fault in faults.values():
            print_line(fault)
    else:
        print_line(f"all {len(planned)} tensors are sparse as planned")
    raise typer.Exit(1 if faults else 0)


def _faults(leaves: Leaves, leaf: LeafPlan) -> Mapping[str, str]:
    """Returns the fault of a tensor by its name; empty if it has none."""
    weight = leaves.read(leaf.path)
    try:
        with x64_if_needed(weight.dtype):
            check_sparsity({leaf.path: weight}, Plan((leaf,)))
    except SparsityError as error:
        return error.faults
    return {}


def _as_json(leaves: Leaves, plan: Plan, faults: Mapping[str, str]) -> dict[str, Any]:
    return {
        "file": str(leaves.path),
        "obeys": not faults,
        "leaves": [
            {"leaf": leaf.path, "plan": leaf.decision, "fault": faults.get(leaf.path)}
            for leaf in plan.leaves
        ],
    }
