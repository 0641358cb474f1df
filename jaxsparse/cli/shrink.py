"""The command `shrink`."""

import math
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxsparse._trees import bytes_text, shape_text, weights_text
from jaxsparse.cli.arguments import FileArgument, JsonOption, PlainOption, VerboseOption
from jaxsparse.cli.console import print_json, print_line, print_table
from jaxsparse.cli.leaves import Leaves, open_leaves
from jaxsparse.cli.method import Data, LengthOption, SamplesOption, SeedOption
from jaxsparse.cli.prune import DryRunOption, ForceOption, OutputOption
from jaxsparse.cli.prune_output import check_prunable, files_left_out, output_to_write
from jaxsparse.cli.shrink_folder import (
    Refit,
    Smaller,
    open_refit,
    plan_smaller,
    write_smaller,
)
from jaxsparse.cli.tokens import load_tokens


SparsityOption = Annotated[
    float,
    typer.Option("--sparsity", help="The fraction of the hidden channels that goes."),
]
MultipleOption = Annotated[
    int,
    typer.Option(
        "--multiple-of",
        help="The new number of channels is rounded to a multiple of this.",
    ),
]
CalibrateOption = Annotated[
    Path | None,
    typer.Option(
        "--calibrate",
        metavar="TEXT_OR_NPZ",
        help="What the model reads, as for prune: channels are then chosen by their "
        "energy, and the layers that take them in are refitted.",
    ),
]


def shrink(
    file: FileArgument,
    output: OutputOption = None,
    sparsity: SparsityOption = 0.5,
    multiple_of: MultipleOption = 8,
    calibrate: CalibrateOption = None,
    samples: SamplesOption = None,
    length: LengthOption = None,
    seed: SeedOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    plain: PlainOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Take hidden channels out of the MLPs of a model, and write a smaller one.

    FILE and OUT are folders of Hugging Face models, of the kinds of Llama, GPT-2, BERT
    or ViT. Each layer keeps its own channels, and all keep as many. The number in
    config.json is changed; everything else is copied. One layer is in memory at a time.
    """
    leaves = open_leaves(file)
    check_prunable(leaves)
    if leaves.kind != "folder":
        raise ValueError(f"{file} must be the folder of a model, with its config.json")
    output = output_to_write(leaves, output, force=force, dry_run=dry_run)
    smaller = plan_smaller(leaves, sparsity, multiple_of)
    refit = None
    if calibrate is not None:
        data = Data(calibrate, samples, length, seed or 0)
        refit = open_refit(leaves, partial(load_tokens, data, leaves.path))
    elif any(value is not None for value in (samples, length, seed)):
        raise ValueError("--samples, --length and --seed need --calibrate")
    if output is not None:
        write_smaller(leaves, smaller, output, refit, replace=force, verbose=verbose)
    if json:
        print_json(_as_json(leaves, output, smaller))
    else:
        _print(leaves, output, smaller, refit, plain=plain)


def _print(
    leaves: Leaves,
    output: Path | None,
    smaller: Smaller,
    refit: Refit | None,
    *,
    plain: bool,
) -> None:
    """Prints the old and the new shapes, and what was written."""
    print_table(
        ("tensor", "shape", "now"),
        (
            (name, (shape_text(leaves.specs[name].shape), shape_text(shape)))
            for name, shape in smaller.shapes.items()
        ),
        ("total", *_weights(leaves, smaller)),
        plain=plain,
    )
    if refit is not None:
        print_line(f"refitted on {refit.tokens.describe()}")
    print_line(
        f"{len(smaller.mlps)} MLPs keep {smaller.size} of {smaller.mlps[0].group.size} "
        f"hidden channels: {bytes_text(*_bytes(leaves, smaller))}"
    )
    print_line("nothing was written" if output is None else f"wrote {output}")
    if left_out := files_left_out(leaves):
        print_line(
            f"not copied, because only safetensors are shrunk: {', '.join(left_out)}"
        )


def _weights(leaves: Leaves, smaller: Smaller) -> tuple[str, str]:
    """Returns the numbers of weights before and after."""
    shapes = {name: spec.shape for name, spec in leaves.specs.items()}
    count = lambda shapes: weights_text(sum(map(math.prod, shapes.values())))
    return count(shapes), count(shapes | smaller.shapes)


def _as_json(leaves: Leaves, output: Path | None, smaller: Smaller) -> dict[str, Any]:
    """Returns the paths, the sizes and the new shapes, as for JSON."""
    return {
        "file": str(leaves.path),
        "output": None if output is None else str(output),
        "not_copied": files_left_out(leaves),
        "size": smaller.mlps[0].group.size,
        "new_size": smaller.size,
        "leaves": [
            {
                "leaf": name,
                "shape": list(leaves.specs[name].shape),
                "new_shape": list(shape),
            }
            for name, shape in smaller.shapes.items()
        ],
    }


def _bytes(leaves: Leaves, smaller: Smaller) -> tuple[int, int]:
    """Returns the bytes of all tensors after and before."""
    before = leaves.bytes_of
    after = before | {
        name: math.prod(shape) * leaves.specs[name].dtype.itemsize
        for name, shape in smaller.shapes.items()
    }
    return sum(after.values()), sum(before.values())
