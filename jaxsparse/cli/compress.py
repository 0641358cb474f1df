"""The command `compress`."""

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

from jaxsparse._compressed import Compressed, compress_params, is_compressed
from jaxsparse._files import index_of, save_leaves, without_index
from jaxsparse._plans import LeafPlan, Plan
from jaxsparse._reports import SparsityError, check_sparsity
from jaxsparse._trees import bytes_text, shape_text, weights_text
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
from jaxsparse.cli.prune import ForceOption
from jaxsparse.cli.prune_output import check_prunable, checked_output
from jaxsparse.cli.prune_report import planned_as_json
from jaxsparse.cli.totals import totals


class EightBits(Enum):
    """The formats of eight bits."""

    int8 = "int8"
    float8_e4m3fn = "float8_e4m3fn"


OutputOption = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="OUT", help="The .safetensors file to write."
    ),
]
QuantizeOption = Annotated[
    EightBits | None,
    typer.Option(
        "--quantize",
        help="Also store the kept weights in eight bits, with a scale for each output.",
    ),
]


def compress(
    file: FileArgument,
    output: OutputOption,
    quantize: QuantizeOption = None,
    pattern: PatternOption = "2:4",
    layout: LayoutOption = None,
    rule: RuleOption = None,
    any_size: AnySizeOption = False,
    head: HeadOption = False,
    router: RouterOption = False,
    adapter: AdapterOption = False,
    force: ForceOption = False,
    json: JsonOption = False,
    plain: PlainOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Store sparse tensors without their zeros, in a smaller file.

    FILE is what prune wrote, and the options are those of prune. OUT is held in memory
    before it is written. It is for jaxsparse.load_sparse, or for jaxsparse.open_torch
    if FILE has PyTorch's names; other libraries can't use it.
    """
    leaves = open_leaves(file)
    check_prunable(leaves)
    if without_index(output).suffix != ".safetensors":
        raise ValueError(
            f"{output} must end in .safetensors: compressed tensors are written to a "
            "file, not to a folder"
        )
    checked_output(replace(leaves, kind="file"), output, force)
    output = without_index(output)
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
    stored: dict[str, np.ndarray | Compressed] = {}
    zeros: dict[str, int] = {}
    for name in with_progress(leaves.bytes_of, "compress", verbose=verbose):
        weight = leaves.read(name)
        zeros[name] = count_zeros(weight)
        stored[name] = _compressed(weight, plan[name], quantize)
    save_leaves(output, stored, metadata=_metadata(leaves))
    written = index_of(output) if index_of(output).exists() else output
    if json:
        print_json(_as_json(leaves, written, plan, stored))
    else:
        _print(leaves, written, plan, stored, zeros, plain)


def _compressed(
    weight: np.ndarray, leaf: LeafPlan, quantize: EightBits | None
) -> np.ndarray | Compressed:
    """Returns a tensor without its zeros, if it is planned.

    Raises:
      ValueError: it is not sparse as planned.
    """
    if leaf.pattern is None:
        return weight
    tree, plan = {leaf.path: weight}, Plan((leaf,))
    with x64_if_needed(weight.dtype):
        try:
            check_sparsity(tree, plan)
        except SparsityError as error:
            raise ValueError(
                f"tensor {error.faults[leaf.path]}: run jaxsparse prune before, with "
                "the same options"
            ) from error
        masks = {leaf.path: weight != 0}
        how = None if quantize is None else quantize.value
        small = compress_params(tree, plan, masks=masks, quantize=how)
        return jax.tree.map(np.asarray, small)[leaf.path]


def _metadata(leaves: Leaves) -> dict[str, str]:
    """Returns the metadata of the file, but for those that jaxsparse writes."""
    return {
        key: value
        for header in leaves.headers
        for key, value in header.metadata.items()
        if not key.startswith("jaxsparse")
    }


def _print(
    leaves: Leaves,
    output: Path,
    plan: Plan,
    stored: dict[str, np.ndarray | Compressed],
    zeros: dict[str, int],
    plain: bool,
) -> None:
    total = totals(leaves, zeros)
    small = sum(x.nbytes for x in stored.values())
    dense = sum(leaves.bytes_of.values())
    print_table(
        ("tensor", "shape", "stored"),
        (
            (leaf.path, (shape_text(leaf.shape or ()), _how(leaf, stored[leaf.path])))
            for leaf in plan.leaves
        ),
        ("total", weights_text(total.weights), bytes_text(small, dense)),
        plain=plain,
    )
    count = sum(map(is_compressed, stored.values()))
    print_line(total.sentence(f"compressed {count} of {len(stored)} tensors"))
    print_line(f"wrote {output}")


def _how(leaf: LeafPlan, x: np.ndarray | Compressed) -> str:
    if leaf.pattern is None:
        return leaf.decision
    if not is_compressed(x):
        return f"with its zeros: {leaf.pattern} is not in groups of 4, 8 or 16"
    return f"{leaf.decision}, in {x.values.dtype}" if x.is_quantized else leaf.decision


def _as_json(
    leaves: Leaves,
    output: Path,
    plan: Plan,
    stored: dict[str, np.ndarray | Compressed],
) -> dict[str, Any]:
    return {
        "file": str(leaves.path),
        "output": str(output),
        "leaves": [
            {
                **planned_as_json(leaf),
                "compressed": is_compressed(stored[leaf.path]),
                "dense_bytes": leaves.bytes_of[leaf.path],
                "bytes": stored[leaf.path].nbytes,
            }
            for leaf in plan.leaves
        ],
    }
