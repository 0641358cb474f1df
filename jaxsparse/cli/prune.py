"""The command `prune`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from jaxsparse._masks import search_masks
from jaxsparse._plans import (
    LeafPlan,
    Plan,
    pruned_weights,
)
from jaxsparse.cli.arguments import (
    FileArgument,
    JsonOption,
    PlainOption,
    VerboseOption,
)
from jaxsparse.cli.console import print_json, print_line
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
from jaxsparse.cli.progress import progress
from jaxsparse.cli.prune_output import (
    check_prunable,
    checked_output,
    files_left_out,
    write_changed,
)
from jaxsparse.cli.prune_report import print_pruned, pruned_as_json


OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="OUT",
        help="What to write, of the same kind as FILE: a .safetensors file, a "
        ".safetensors.index.json, or a folder.",
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the plan, and write nothing.")
]


def prune(
    file: FileArgument,
    output: OutputOption = None,
    pattern: PatternOption = "2:4",
    layout: LayoutOption = None,
    rule: RuleOption = None,
    any_size: AnySizeOption = False,
    head: HeadOption = False,
    router: RouterOption = False,
    adapter: AdapterOption = False,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    plain: PlainOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Prune to n:m by magnitude and write a new file.

    One tensor is in memory at a time. Biases, norms, embeddings, the output layer,
    routers of experts and low-rank adapters stay dense. OUT is written atomically: it
    is either complete or absent. If FILE is the folder of a model, OUT is one too.
    """
    leaves = open_leaves(file)
    check_prunable(leaves)
    if output is not None:
        output = checked_output(leaves, output, force)
    elif not dry_run:
        raise ValueError("give --output OUT, or --dry-run to write nothing")
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
    left_out = files_left_out(leaves)
    if dry_run or output is None:
        output = None
        zeros = {leaf.path: pruned_weights(leaf) for leaf in plan.leaves}
    else:
        zeros = _write(leaves, output, plan, replace=force, verbose=verbose)
    if json:
        print_json(pruned_as_json(leaves, output, plan, left_out))
        return
    print_pruned(leaves, output, plan, zeros, plain=plain)
    if left_out:
        print_line(
            f"not copied, because only safetensors are pruned: {', '.join(left_out)}"
        )


def prune_weight(weight: np.ndarray, plan: LeafPlan) -> np.ndarray:
    """Prunes a weight in place as planned, and returns it."""
    if plan.pattern is None:
        return weight
    with x64_if_needed(weight.dtype):
        mask = np.asarray(search_masks({plan.path: weight}, [plan])[plan.path])
    np.copyto(weight, np.zeros((), weight.dtype), where=np.logical_not(mask))
    return weight


def _write(
    leaves: Leaves, output: Path, plan: Plan, *, replace: bool, verbose: bool
) -> Mapping[str, int]:
    """Writes the pruned tensors, and returns the number of zeros in each."""
    zeros: dict[str, int] = {}
    with progress(leaves.bytes_of, "prune", verbose=verbose) as step:

        def change(name: str, weight: np.ndarray) -> np.ndarray:
            step(name)
            pruned = prune_weight(weight, plan[name])
            zeros[name] = count_zeros(pruned)
            return pruned

        write_changed(leaves, output, change, replace=replace)
    return zeros
