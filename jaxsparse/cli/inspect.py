"""The command `inspect`."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxsparse._compressed import is_compressed
from jaxsparse._trees import percent_text, shape_text, weights_text
from jaxsparse.cli.arguments import FileArgument, JsonOption, PlainOption, VerboseOption
from jaxsparse.cli.console import print_json, print_line, print_table
from jaxsparse.cli.finest_pattern import finest_pattern, nonzero
from jaxsparse.cli.leaves import Leaves, open_leaves
from jaxsparse.cli.progress import with_progress
from jaxsparse.cli.totals import stored_text, totals


def inspect(
    file: FileArgument,
    json: JsonOption = False,
    plain: PlainOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show each tensor, and the sparsest n:m pattern that it obeys.

    That is the pattern of the lowest density in groups of 2, 4, 8 or 16, with all axes
    along which it is obeyed. On a terminal, tensors whose names differ only by numbers
    share a row.
    """
    leaves = open_leaves(file)
    results = [
        _inspect_tensor(leaves, name)
        for name in with_progress(leaves.bytes_of, "inspect", verbose=verbose)
    ]
    if json:
        print_json({"file": str(leaves.path), "leaves": results})
        return
    total = totals(leaves, {result["leaf"]: result["zeros"] for result in results})
    sparse = sum(
        result["pattern"] is not None
        for result in results
        if result["leaf"] in leaves.matrices
    )
    print_table(
        ("tensor", "shape", "dtype", "zeros", "obeys"),
        ((result["leaf"], _cells(result)) for result in results),
        (
            "total",
            weights_text(total.weights),
            stored_text(leaves),
            total.sparsity,
            f"{sparse} of {len(leaves.matrices)}",
        ),
        plain=plain,
    )
    print_line(total.sentence(f"{len(results)} tensors"))


def _inspect_tensor(leaves: Leaves, name: str) -> dict[str, Any]:
    spec = leaves.specs[name]
    values = spec.values.dtype.name if is_compressed(spec) else None
    nonzeros = nonzero(leaves.read(name))
    finest = finest_pattern(nonzeros)
    return {
        "leaf": name,
        "shape": list(spec.shape),
        "dtype": jnp.dtype(spec.dtype).name,
        "compressed": is_compressed(spec),
        "values": values,
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
        if result["values"] != result["dtype"]:
            dtype += f" in {result['values']}"
    return shape_text(tuple(result["shape"])), dtype, percent_text(zeros), obeys
