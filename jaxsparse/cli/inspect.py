"""The command `inspect`."""

from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import typer

from jaxsparse._compressed import is_compressed
from jaxsparse._trees import fold, shape_text
from jaxsparse.cli.console import print_json, print_line, print_table, with_progress
from jaxsparse.cli.finest_pattern import finest_pattern, nonzero
from jaxsparse.cli.leaves import Leaves, open_leaves


FileArgument = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="A .safetensors file, a .safetensors.index.json, or the folder of an "
        "Orbax checkpoint.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def inspect(file: FileArgument, json: JsonOption = False) -> None:
    """Show each tensor, and the sparsest n:m pattern that it obeys.

    That is the pattern of the lowest density in groups of 2, 4, 8 or 16, with all axes
    along which it is obeyed. Tensors whose names differ only in numbers share a line.
    """
    leaves = open_leaves(file)
    results = [
        _inspect_tensor(leaves, name)
        for name in with_progress([*leaves.specs], "inspect")
    ]
    if json:
        print_json({"file": str(leaves.path), "leaves": results})
        return
    print_table(
        ("tensor", "shape", "dtype", "zeros", "obeys"),
        fold((result["leaf"], _cells(result)) for result in results),
    )
    size = sum(result["size"] for result in results)
    zeros = sum(result["zeros"] for result in results)
    share = f"{zeros / max(size, 1):.1%}"
    print_line(f"{len(results)} tensors, {size:,} values, {share} zeros")


def _inspect_tensor(leaves: Leaves, name: str) -> dict[str, Any]:
    spec = leaves.specs[name]
    nonzeros = nonzero(leaves.read(name))
    finest = finest_pattern(nonzeros)
    return {
        "leaf": name,
        "shape": list(spec.shape),
        "dtype": jnp.dtype(spec.dtype).name,
        "compressed": is_compressed(spec),
        "size": nonzeros.size,
        "zeros": nonzeros.size - int(np.count_nonzero(nonzeros)),
        "pattern": None if finest is None else f"{finest[0]}:{finest[1]}",
        "axes": [] if finest is None else list(finest[2]),
    }


def _cells(result: dict[str, Any]) -> tuple[str, ...]:
    zeros = result["zeros"] / max(result["size"], 1)
    obeys = "-"
    if result["pattern"]:
        axes = " and ".join(map(str, result["axes"]))
        label = "axis" if len(result["axes"]) == 1 else "axes"
        obeys = f"{result['pattern']} along {label} {axes}"
    dtype = result["dtype"]
    if result["compressed"]:
        dtype += ", compressed"
    return shape_text(tuple(result["shape"])), dtype, f"{zeros:.1%}", obeys
