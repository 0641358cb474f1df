"""The command `compare`."""

import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from jaxsparse._trees import fold, shape_text
from jaxsparse.cli.console import print_json, print_line, print_table, with_progress
from jaxsparse.cli.finest_pattern import nonzero
from jaxsparse.cli.inspect import JsonOption
from jaxsparse.cli.leaves import Leaves, open_leaves


#: How many values are compared at once.
_CHUNK = 2**20


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A file as for inspect.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="A file as for inspect.")],
    json: JsonOption = False,
) -> None:
    """Show how much the tensors of two files differ.

    The error is |a - b| / |a|, the ratio of two norms. The exit code is 1 if a tensor
    is missing in one of the files, or has another shape or dtype there.
    """
    file_a, file_b = open_leaves(a), open_leaves(b)
    names = [*file_a.specs, *(x for x in file_b.specs if x not in file_a.specs)]
    results = [
        _compare_tensor(file_a, file_b, name)
        for name in with_progress(names, "compare")
    ]
    if json:
        print_json({"a": str(file_a.path), "b": str(file_b.path), "leaves": results})
    else:
        print_table(
            ("tensor", "shape", "zeros a", "zeros b", "differ", "error"),
            fold((result["leaf"], _cells(result)) for result in results),
        )
        equal = sum(result.get("differ") == 0 for result in results)
        print_line(f"{equal} of {len(results)} tensors are equal")
    mismatch = any("only" in result or "other" in result for result in results)
    raise typer.Exit(1 if mismatch else 0)


def _compare_tensor(file_a: Leaves, file_b: Leaves, name: str) -> dict[str, Any]:
    spec_a, spec_b = file_a.specs.get(name), file_b.specs.get(name)
    if spec_a is None or spec_b is None:
        return {"leaf": name, "only": "b" if spec_a is None else "a"}
    texts = [f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in (spec_a, spec_b)]
    if texts[0] != texts[1]:
        return {"leaf": name, "other": texts}
    a, b = file_a.read(name).reshape(-1), file_b.read(name).reshape(-1)
    differ, error, norm, zeros = 0, 0.0, 0.0, [0, 0]
    for start in range(0, a.size, _CHUNK):
        x, y = a[start : start + _CHUNK], b[start : start + _CHUNK]
        for i, chunk in enumerate((x, y)):
            zeros[i] += chunk.size - int(np.count_nonzero(nonzero(chunk)))
        same = (x.view(np.uint8) == y.view(np.uint8)).reshape(x.size, -1).all(axis=1)
        differ += x.size - int(np.count_nonzero(same))
        error += _square_sum(_widen(x[~same]) - _widen(y[~same]))
        norm += _square_sum(_widen(x))
    return {
        "leaf": name,
        "shape": list(spec_a.shape),
        "size": a.size,
        "zeros": zeros,
        "differ": differ,
        "error": _ratio(error, norm),
    }


def _widen(x: np.ndarray) -> np.ndarray:
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def _square_sum(x: np.ndarray) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sum(np.square(np.abs(x))))


def _ratio(square_error: float, square_norm: float) -> float | None:
    """Returns the ratio of the norms, or None if it is not finite."""
    if square_error == 0:
        return 0.0
    ratio = math.sqrt(square_error / square_norm) if square_norm else math.inf
    return ratio if math.isfinite(ratio) else None


def _cells(result: dict[str, Any]) -> tuple[str, ...]:
    if "only" in result:
        return "-", "-", "-", f"only in {result['only']}", "-"
    if "other" in result:
        return "-", "-", "-", " / ".join(result["other"]), "-"
    size = max(result["size"], 1)
    return (
        shape_text(tuple(result["shape"])),
        *(f"{count / size:.1%}" for count in (*result["zeros"], result["differ"])),
        "-" if result["error"] is None else f"{result['error']:.3g}",
    )
