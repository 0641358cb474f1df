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
from jaxsparse.cli.leaves import Leaves, open_leaves, without_index, x64_if_needed
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


OutputOption = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="OUT",
        help="The file to write, of the same kind as FILE: a .safetensors file, a "
        ".safetensors.index.json, or a folder.",
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")]


def prune(
    file: FileArgument,
    output: OutputOption,
    pattern: PatternOption = "2:4",
    layout: LayoutOption = None,
    rule: RuleOption = None,
    any_size: AnySizeOption = False,
    head: HeadOption = False,
    router: RouterOption = False,
    adapter: AdapterOption = False,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Prune to n:m by magnitude and write a new file.

    One tensor is in memory at a time. Biases, norms, embeddings, the output layer,
    routers of experts and low-rank adapters stay dense. OUT is written atomically: it
    is either complete or absent.
    """
    leaves = open_leaves(file)
    if not leaves.path.is_dir():
        output = checked_path(without_index(output))
    _check_output(leaves, output, force)
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
    with progress(len(plan.leaves), "prune") as step:

        def change(name: str, weight: np.ndarray) -> np.ndarray:
            step(name)
            return prune_weight(weight, plan[name])

        if leaves.path.is_dir():
            write_orbax_arrays(leaves.path, output, change, replace=force)
        else:
            rewrite_tensors(leaves.path, leaves.headers, output, change, replace=force)
    if json:
        print_json(_as_json(leaves, output, plan))
        return
    print_table(
        ("tensor", "shape", "plan"),
        fold((x.path, (shape_text(x.shape or ()), x.decision)) for x in plan.leaves),
    )
    print_line(f"pruned {len(plan.sparse)} of {len(plan.leaves)} tensors: {output}")


def prune_weight(weight: np.ndarray, plan: LeafPlan) -> np.ndarray:
    """Prunes a weight in place as planned, and returns it."""
    if plan.pattern is None:
        return weight
    with x64_if_needed(weight.dtype):
        mask = np.asarray(search_masks({plan.path: weight}, [plan])[plan.path])
    np.copyto(weight, np.zeros((), weight.dtype), where=np.logical_not(mask))
    return weight


def _check_output(leaves: Leaves, output: Path, force: bool) -> None:
    """Raises `ValueError` if the tensors cannot be pruned, or not to this output."""
    if not leaves.specs:
        raise ValueError(f"{leaves.path} has no tensors")
    for name, spec in leaves.specs.items():
        if is_compressed(spec):
            raise ValueError(f"{leaves.path}: tensor {name!r} is already compressed")
    if leaves.path.is_dir():
        _check_not_nested(leaves.path, output)
        output = output.resolve()
        targets, is_same_kind = [output], is_orbax_checkpoint
    else:
        targets, is_same_kind = [output, index_of(output)], Path.is_file
    if not output.parent.is_dir():
        raise ValueError(f"there is no folder {output.parent}: create it")
    inputs = [leaves.path, index_of(leaves.path), *(x.path for x in leaves.headers)]
    resolved_inputs = {path.resolve() for path in inputs}
    for path in (*targets, *stale_files(output, keep=())):
        if path.resolve() in resolved_inputs:
            raise ValueError(f"{path} is part of the input: give another output")
    for path in filter(Path.exists, targets):
        if not force:
            raise ValueError(f"{path} already exists: give --force to replace it")
        if not is_same_kind(path):
            raise ValueError(
                f"{path} is not the same kind of file as {leaves.path}: remove it"
            )


def _check_not_nested(path: Path, output: Path) -> None:
    """Raises `ValueError` if one of two folders is inside the other."""
    resolved_path, resolved_output = path.resolve(), output.resolve()
    if (
        resolved_path in resolved_output.parents
        or resolved_output in resolved_path.parents
    ):
        raise ValueError(
            f"{output} is inside the input {path}, or contains it: give another output"
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
