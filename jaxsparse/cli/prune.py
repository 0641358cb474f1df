"""The command `prune`."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer

from jaxsparse._channels import PermutedGroup
from jaxsparse._files import spilled_tensors
from jaxsparse._masks import search_masks
from jaxsparse._plans import LeafPlan, Plan, pruned_weights
from jaxsparse._reports import LeafError
from jaxsparse.cli.arguments import FileArgument, JsonOption, PlainOption, VerboseOption
from jaxsparse.cli.calibrate import (
    Calibration,
    calibration_lines,
    open_calibration,
    prune_calibrated,
)
from jaxsparse.cli.console import print_json, print_line, print_note
from jaxsparse.cli.finest_pattern import count_nonfinite, count_zeros
from jaxsparse.cli.leaves import Leaves, open_leaves, x64_if_needed
from jaxsparse.cli.method import (
    CalibrateOption,
    LengthOption,
    Method,
    MethodOption,
    PermuteOption,
    SamplesOption,
    SeedOption,
    checked_data,
)
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
from jaxsparse.cli.permute import Permuted, gain_line, open_blocks, permute_blocks
from jaxsparse.cli.progress import progress
from jaxsparse.cli.prune_output import (
    check_prunable,
    files_left_out,
    output_to_write,
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
    method: MethodOption = Method.magnitude,
    calibrate: CalibrateOption = None,
    samples: SamplesOption = None,
    length: LengthOption = None,
    seed: SeedOption = None,
    permute: PermuteOption = False,
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
    """Prune to n:m and write a new file.

    One tensor is in memory at a time; with --permute, one block of the model; with
    --calibrate, its inputs too. Biases, norms, embeddings, the output layer, routers
    of experts and low-rank adapters stay dense. OUT is written atomically: it is either
    complete or absent. If FILE is the folder of a model, OUT is one too.
    """
    leaves = open_leaves(file)
    check_prunable(leaves)
    data = checked_data(leaves, method, calibrate, samples, length, seed)
    output = output_to_write(leaves, output, force=force, dry_run=dry_run)
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
    model = open_blocks(leaves, plan) if permute else None
    calibration = None
    if data is not None:
        calibration = open_calibration(leaves, plan, method, data, permute=permute)
    permuted = Permuted((), {})
    if model is not None and calibration is None:
        permuted = permute_blocks(leaves, plan, model, verbose=verbose)
    if output is None:
        zeros = {leaf.path: pruned_weights(leaf) for leaf in plan.leaves}
        done = _Done(zeros, {}, permuted.gains)
    else:
        done = _prune(
            leaves, output, plan, calibration, permuted, replace=force, verbose=verbose
        )
    gains = done.gains if permute else None
    if json:
        report = pruned_as_json(
            leaves, output, plan, left_out, calibration, done.errors, gains
        )
        print_json(report)
        return
    print_pruned(leaves, output, plan, done.zeros, plain=plain)
    if gains is not None:
        print_line(gain_line(gains, method, is_done=output is not None))
    if calibration is not None:
        for line in calibration_lines(calibration, done.errors):
            print_line(line)
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


class _Done(NamedTuple):
    """What became of a file.

    Attributes:
      zeros: the number of zeros in each tensor.
      errors: the error of each pruned tensor, if it was calibrated.
      gains: what each group of channels gained that was permuted.
    """

    zeros: Mapping[str, int]
    errors: Mapping[str, LeafError]
    gains: Sequence[PermutedGroup]


def _prune(
    leaves: Leaves,
    output: Path,
    plan: Plan,
    calibration: Calibration | None,
    permuted: Permuted,
    *,
    replace: bool,
    verbose: bool,
) -> _Done:
    """Prunes and writes."""
    write = partial(_write, leaves, output, replace=replace, verbose=verbose)
    if calibration is None:
        zeros = write(lambda name, x: prune_weight(permuted.of(name, x), plan[name]))
        return _Done(zeros, {}, permuted.gains)
    with spilled_tensors(output.parent) as changed:
        done = prune_calibrated(
            leaves, plan, calibration, changed.store, verbose=verbose
        )
        read = lambda name, x: changed.read(name) if name in done.stored else x
        return _Done(write(read), done.errors, done.gains)


def _write(
    leaves: Leaves,
    output: Path,
    prune: Callable[[str, np.ndarray], np.ndarray],
    *,
    replace: bool,
    verbose: bool,
) -> Mapping[str, int]:
    """Writes the pruned tensors, and returns the number of zeros in each."""
    zeros: dict[str, int] = {}
    nonfinite: dict[str, int] = {}
    with progress(leaves.bytes_of, "prune", verbose=verbose) as step:

        def change(name: str, weight: np.ndarray) -> np.ndarray:
            step(name)
            if count := count_nonfinite(weight):
                nonfinite[name] = count
            pruned = prune(name, weight)
            zeros[name] = count_zeros(pruned)
            return pruned

        write_changed(leaves, output, change, replace=replace)
    if nonfinite:
        print_note(
            f"{sum(nonfinite.values()):,} values of {len(nonfinite)} tensors are NaN "
            f"or infinite, the first of {next(iter(nonfinite))}: they rank highest"
        )
    return zeros
