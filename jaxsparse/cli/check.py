"""The command `check`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import typer

from jaxsparse._plans import LeafPlan, Plan
from jaxsparse._reports import SparsityError, check_sparsity
from jaxsparse._trees import shape_text, weights_text
from jaxsparse.cli.arguments import FileArgument, JsonOption, PlainOption, VerboseOption
from jaxsparse.cli.console import print_json, print_line, print_table
from jaxsparse.cli.finest_pattern import count_zeros
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
from jaxsparse.cli.progress import with_progress
from jaxsparse.cli.totals import stored_text, totals


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
    plain: PlainOption = False,
    verbose: VerboseOption = False,
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
    zeros: dict[str, int] = {}
    faults: dict[str, SparsityError] = {}
    for name in with_progress(leaves.bytes_of, "check", verbose=verbose):
        weight = leaves.read(name)
        zeros[name] = count_zeros(weight)
        if (fault := _fault(weight, plan[name])) is not None:
            faults[name] = fault
    if json:
        print_json(_as_json(leaves, plan, faults))
    else:
        _print(leaves, plan, zeros, faults, plain)
    raise typer.Exit(1 if faults else 0)


def _fault(weight: np.ndarray, leaf: LeafPlan) -> SparsityError | None:
    """Returns what is wrong with a tensor, if anything."""
    if leaf.pattern is None:
        return None
    try:
        with x64_if_needed(weight.dtype):
            check_sparsity({leaf.path: weight}, Plan((leaf,)))
    except SparsityError as error:
        return error
    return None


def _print(
    leaves: Leaves,
    plan: Plan,
    zeros: Mapping[str, int],
    faults: Mapping[str, SparsityError],
    plain: bool,
) -> None:
    total, sparse = totals(leaves, zeros), len(plan.sparse)
    print_table(
        ("tensor", "shape", "result"),
        ((leaf.path, _cells(leaf, faults.get(leaf.path))) for leaf in plan.leaves),
        (
            "total",
            weights_text(total.weights),
            f"{sparse - len(faults)} of {sparse} sparse: {total.sparsity} of weights, "
            f"{stored_text(leaves)}",
        ),
        plain=plain,
    )
    subject = f"all {sparse} tensors are sparse as planned"
    if faults:
        subject = f"{len(faults)} of {sparse} tensors are not sparse as planned"
    print_line(total.sentence(subject))
    for name, fault in [*faults.items()][:1]:
        print_line(f"the first is {fault.faults[name]}")


def _cells(leaf: LeafPlan, fault: SparsityError | None) -> tuple[str, ...]:
    if fault is not None:
        result = f"not {leaf.pattern}: {fault.counts[leaf.path]}"
    else:
        result = leaf.decision + (": sparse" if leaf.pattern is not None else "")
    return shape_text(leaf.shape or ()), result


def _as_json(
    leaves: Leaves, plan: Plan, faults: Mapping[str, SparsityError]
) -> dict[str, Any]:
    texts = {name: fault.faults[name] for name, fault in faults.items()}
    return {
        "file": str(leaves.path),
        "obeys": not faults,
        "leaves": [
            {"leaf": leaf.path, "plan": leaf.decision, "fault": texts.get(leaf.path)}
            for leaf in plan.leaves
        ],
    }
