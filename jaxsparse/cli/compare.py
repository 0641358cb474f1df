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


#: So many values are compared at once.
_PIECE = 2**20


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="As for inspect.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="As for inspect.")],
    json: JsonOption = False,
) -> None:
    """Show how much the leaves of two files differ.

    The error is |a - b| / |a|, of norms. It exits with 1 if a leaf is in one of the
    two only, or of another shape or dtype there.
    """
    first, second = open_leaves(a), open_leaves(b)
    names = [*first.specs, *(x for x in second.specs if x not in first.specs)]
    found = [_compared(first, second, name) for name in with_progress(names, "compare")]
    if json:
        print_json({"a": str(first.path), "b": str(second.path), "leaves": found})
    else:
        print_table(
            ("leaf", "shape", "zeros a", "zeros b", "differ", "error"),
            fold((leaf["leaf"], _cells(leaf)) for leaf in found),
        )
        equal = sum(leaf.get("differ") == 0 for leaf in found)
        print_line(f"{equal} of {len(found)} leaves are equal")
    raise typer.Exit(1 if any("only" in x or "other" in x for x in found) else 0)


def _compared(first: Leaves, second: Leaves, name: str) -> dict[str, Any]:
    mine, other = first.specs.get(name), second.specs.get(name)
    if mine is None or other is None:
        return {"leaf": name, "only": "b" if mine is None else "a"}
    texts = [f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in (mine, other)]
    if texts[0] != texts[1]:
        return {"leaf": name, "other": texts}
    one, two = first.read(name).reshape(-1), second.read(name).reshape(-1)
    differ, error, norm, zeros = 0, 0.0, 0.0, [0, 0]
    for start in range(0, one.size, _PIECE):
        x, y = one[start : start + _PIECE], two[start : start + _PIECE]
        for i, piece in enumerate((x, y)):
            zeros[i] += piece.size - int(np.count_nonzero(nonzero(piece)))
        same = (x.view(np.uint8) == y.view(np.uint8)).reshape(x.size, -1).all(axis=1)
        differ += x.size - int(np.count_nonzero(same))
        error += _square_sum(_wide(x[~same]) - _wide(y[~same]))
        norm += _square_sum(_wide(x))
    return {
        "leaf": name,
        "shape": list(mine.shape),
        "size": one.size,
        "zeros": zeros,
        "differ": differ,
        "error": _ratio(error, norm),
    }


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def _square_sum(x: np.ndarray) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sum(np.square(np.abs(x))))


def _ratio(error: float, norm: float) -> float | None:
    """Of the norms; None where it is no finite number."""
    if error == 0:
        return 0.0
    ratio = math.sqrt(error / norm) if norm else math.inf
    return ratio if math.isfinite(ratio) else None


def _cells(leaf: dict[str, Any]) -> tuple[str, ...]:
    if "only" in leaf:
        return "-", "-", "-", f"only in {leaf['only']}", "-"
    if "other" in leaf:
        return "-", "-", "-", " / ".join(leaf["other"]), "-"
    size = max(leaf["size"], 1)
    share = lambda count: f"{count / size:.1%}"
    return (
        shape_text(tuple(leaf["shape"])),
        *map(share, (*leaf["zeros"], leaf["differ"])),
        "-" if leaf["error"] is None else f"{leaf['error']:.3g}",
    )
