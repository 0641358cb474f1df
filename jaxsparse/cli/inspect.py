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
        help="A .safetensors file, a .safetensors.index.json, or an Orbax folder.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def inspect(file: FileArgument, json: JsonOption = False) -> None:
    """Show each leaf, and the finest n:m that it obeys.

    That is the pattern with the fewest weights, in groups of 2, 4, 8 or 16, and all
    axes along which it holds. Leaves that differ by numbers in their names alone are
    one line.
    """
    leaves = open_leaves(file)
    found = [
        _look_at(leaves, name) for name in with_progress([*leaves.specs], "inspect")
    ]
    if json:
        print_json({"file": str(leaves.path), "leaves": found})
        return
    print_table(
        ("leaf", "shape", "dtype", "zeros", "obeys"),
        fold((leaf["leaf"], _cells(leaf)) for leaf in found),
    )
    total = sum(leaf["size"] for leaf in found)
    zeros = sum(leaf["zeros"] for leaf in found)
    print_line(f"{len(found)} leaves, {total:,} values, {zeros / max(total, 1):.1%} 0")


def _look_at(leaves: Leaves, name: str) -> dict[str, Any]:
    spec = leaves.specs[name]
    there = nonzero(leaves.read(name))
    finest = finest_pattern(there)
    return {
        "leaf": name,
        "shape": list(spec.shape),
        "dtype": jnp.dtype(spec.dtype).name,
        "compressed": is_compressed(spec),
        "size": there.size,
        "zeros": there.size - int(np.count_nonzero(there)),
        "pattern": None if finest is None else f"{finest[0]}:{finest[1]}",
        "axes": [] if finest is None else list(finest[2]),
    }


def _cells(leaf: dict[str, Any]) -> tuple[str, ...]:
    zeros = leaf["zeros"] / max(leaf["size"], 1)
    axes = " and ".join(map(str, leaf["axes"]))
    along = "axis" if len(leaf["axes"]) == 1 else "axes"
    obeys = f"{leaf['pattern']} along {along} {axes}" if leaf["pattern"] else "-"
    dtype = leaf["dtype"] + ", compressed" * leaf["compressed"]
    return shape_text(tuple(leaf["shape"])), dtype, f"{zeros:.1%}", obeys
