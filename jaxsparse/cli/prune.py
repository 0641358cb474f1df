"""The command `prune`."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from jaxsparse._compressed import is_compressed
from jaxsparse._files import (
    checked_path,
    index_of,
    is_orbax_checkpoint,
    rewrite_tensors,
    stale_files,
    write_orbax_arrays,
)
from jaxsparse._masks import search_masks
from jaxsparse._plans import (
    LeafPlan,
    Plan,
)
from jaxsparse._trees import fold, shape_text
from jaxsparse.cli.console import print_json, print_line, print_table, progress
from jaxsparse.cli.inspect import FileArgument, JsonOption
from jaxsparse.cli.leaves import Leaves, as_wide_as, open_leaves, without_index
from jaxsparse.cli.options import (
    AnySizeOption,
    HeadOption,
    LayoutOption,
    PatternOption,
    RuleOption,
    plan_leaves,
)


OutputOption = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="OUT",
        help="As FILE: a .safetensors file, or the index of as many files as FILE "
        "has; or a folder.",
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace OUT.")]


def prune(
    file: FileArgument,
    output: OutputOption,
    pattern: PatternOption = "2:4",
    layout: LayoutOption = None,
    rule: RuleOption = None,
    any_size: AnySizeOption = False,
    head: HeadOption = False,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Prune to n:m, by magnitude, into a new file.

    It goes leaf by leaf. Biases, norms, embeddings and the output layer stay dense.
    OUT is complete or not there, whatever happens meanwhile.
    """
    leaves = open_leaves(file)
    if not leaves.path.is_dir():
        output = checked_path(without_index(output))
    _check_output(leaves, output, force)
    plan = plan_leaves(leaves, pattern, layout, rule, any_size=any_size, head=head)
    with progress(len(plan.leaves), "prune") as step:

        def change(name: str, weight: np.ndarray) -> np.ndarray:
            step(name)
            return prune_weight(weight, plan[name])

        if leaves.path.is_dir():
            write_orbax_arrays(leaves.path, output, change)
        else:
            rewrite_tensors(leaves.path, leaves.headers, output, change)
    if json:
        print_json(_as_json(leaves, output, plan))
        return
    print_table(
        ("leaf", "shape", "plan"),
        fold((x.path, (shape_text(x.shape or ()), x.decision)) for x in plan.leaves),
    )
    print_line(f"pruned {len(plan.sparse)} of {len(plan.leaves)} leaves: {output}")


def prune_weight(weight: np.ndarray, plan: LeafPlan) -> np.ndarray:
    """The weight as its plan says, in its own memory."""
    if plan.pattern is None:
        return weight
    with as_wide_as(weight.dtype):
        mask = np.asarray(search_masks({plan.path: weight}, [plan])[plan.path])
    np.copyto(weight, np.zeros((), weight.dtype), where=np.logical_not(mask))
    return weight


def _check_output(leaves: Leaves, output: Path, force: bool) -> None:
    """Raises unless the leaves may be pruned into this place."""
    if not leaves.specs:
        raise ValueError(f"{leaves.path} has no leaves")
    for name, spec in leaves.specs.items():
        if is_compressed(spec):
            raise ValueError(f"{leaves.path}: leaf {name!r} is compressed already")
    if leaves.path.is_dir():
        _check_apart(leaves.path, output)
        output = output.resolve()
        places, kind = [output], is_orbax_checkpoint
    else:
        places, kind = [output, index_of(output)], Path.is_file
    if not output.parent.is_dir():
        raise ValueError(f"there is no folder {output.parent}: make it")
    files = [leaves.path, index_of(leaves.path), *(x.path for x in leaves.headers)]
    read = {file.resolve() for file in files}
    for place in (*places, *stale_files(output, keep=())):
        if place.resolve() in read:
            raise ValueError(f"{place} is what is read: write to another place")
    for place in filter(Path.exists, places):
        if not force:
            raise ValueError(f"{place} is there already: give --force to replace it")
        if not kind(place):
            raise ValueError(f"{place} is not of the kind of {leaves.path}: remove it")


def _check_apart(path: Path, output: Path) -> None:
    """Raises where one of two folders lies within the other one."""
    one, other = path.resolve(), output.resolve()
    if one in other.parents or other in one.parents:
        raise ValueError(
            f"{output} lies within what is read, or around it: write beside it"
        )


def _as_json(leaves: Leaves, output: Path, plan: Plan) -> dict[str, Any]:
    return {
        "file": str(leaves.path),
        "output": str(output),
        "leaves": [
            {
                "leaf": leaf.path,
                "shape": list(leaf.shape or ()),
                "pattern": None if leaf.pattern is None else str(leaf.pattern),
                "axis": leaf.axis,
                "reason": leaf.reason,
            }
            for leaf in plan.leaves
        ],
    }
