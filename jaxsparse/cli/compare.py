"""The command `compare`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from jaxsparse._trees import percent_text, shape_text, weights_text
from jaxsparse.cli.arguments import JsonOption, PlainOption, VerboseOption
from jaxsparse.cli.console import print_json, print_line, print_table
from jaxsparse.cli.finest_pattern import count_zeros
from jaxsparse.cli.leaves import Leaves, open_leaves
from jaxsparse.cli.progress import with_progress
from jaxsparse.cli.totals import stored_text


#: How many values are compared at once.
_CHUNK = 2**20


@dataclass(frozen=True)
class Difference:
    """How much a tensor differs between two files.

    Attributes:
      name: its name.
      shape: its shape.
      zeros: the numbers of zeros in both.
      differ: the number of values that differ.
      square_error: the sum of the squares of the differences.
      square_norm: the sum of the squares in the first file.
      other: the dtypes and shapes if they differ.
      only: the file that it is in, `a` or `b`, if it is only in one.
    """

    name: str
    shape: tuple[int, ...] = ()
    zeros: tuple[int, int] = (0, 0)
    differ: int = 0
    square_error: float = 0.0
    square_norm: float = 0.0
    other: tuple[str, ...] = ()
    only: str = ""

    @property
    def mismatch(self) -> str:
        """Why the two cannot be compared; empty if they can."""
        return f"only in {self.only}" if self.only else " / ".join(self.other)


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A file as for inspect.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="A file as for inspect.")],
    json: JsonOption = False,
    plain: PlainOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show how much the tensors of two files differ.

    The error is |a - b| / |a|, the ratio of two norms. The exit code is 1 if a tensor
    is missing in one of the files, or has another shape or dtype there.
    """
    file_a, file_b = open_leaves(a), open_leaves(b)
    sizes = file_a.bytes_of | file_b.bytes_of
    results = [
        _compare_tensor(file_a, file_b, name)
        for name in with_progress(sizes, "compare", verbose=verbose)
    ]
    if json:
        leaves = [_as_json(result) for result in results]
        print_json({"a": str(file_a.path), "b": str(file_b.path), "leaves": leaves})
    else:
        print_table(
            ("tensor", "shape", "zeros a", "zeros b", "differ", "error"),
            ((result.name, _cells(result)) for result in results),
            _total_cells([result for result in results if not result.mismatch]),
            plain=plain,
        )
        equal = sum(not result.mismatch and result.differ == 0 for result in results)
        print_line(
            f"{equal} of {len(results)} tensors are equal: {stored_text(file_a)} in a, "
            f"{stored_text(file_b)} in b"
        )
    raise typer.Exit(1 if any(result.mismatch for result in results) else 0)


def _compare_tensor(file_a: Leaves, file_b: Leaves, name: str) -> Difference:
    spec_a, spec_b = file_a.specs.get(name), file_b.specs.get(name)
    if spec_a is None or spec_b is None:
        return Difference(name, only="b" if spec_a is None else "a")
    texts = [f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in (spec_a, spec_b)]
    if texts[0] != texts[1]:
        return Difference(name, other=tuple(texts))
    a, b = file_a.read(name).reshape(-1), file_b.read(name).reshape(-1)
    differ, error, norm = 0, 0.0, 0.0
    for start in range(0, a.size, _CHUNK):
        x, y = a[start : start + _CHUNK], b[start : start + _CHUNK]
        same = (x.view(np.uint8) == y.view(np.uint8)).reshape(x.size, -1).all(axis=1)
        differ += x.size - int(np.count_nonzero(same))
        error += _square_sum(_widen(x[~same]) - _widen(y[~same]))
        norm += _square_sum(_widen(x))
    zeros = count_zeros(a), count_zeros(b)
    return Difference(name, tuple(spec_a.shape), zeros, differ, error, norm)


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


def _cells(result: Difference) -> tuple[str, ...]:
    if result.mismatch:
        return "-", "-", "-", result.mismatch, "-"
    return shape_text(result.shape), *_numbers([result])


def _total_cells(results: Sequence[Difference]) -> tuple[str, ...]:
    size = sum(math.prod(result.shape) for result in results)
    return "total", weights_text(size), *_numbers(results)


def _numbers(results: Sequence[Difference]) -> tuple[str, ...]:
    """Returns the cells of the zeros, differences and error of tensors together."""
    size = max(sum(math.prod(result.shape) for result in results), 1)
    counts = np.sum([(*x.zeros, x.differ) for x in results] or [(0, 0, 0)], axis=0)
    error = _ratio(
        math.fsum(result.square_error for result in results),
        math.fsum(result.square_norm for result in results),
    )
    return (
        *(percent_text(count / size) for count in counts),
        "-" if error is None else f"{error:.3g}",
    )


def _as_json(result: Difference) -> dict[str, Any]:
    if result.only:
        return {"leaf": result.name, "only": result.only}
    if result.other:
        return {"leaf": result.name, "other": list(result.other)}
    return {
        "leaf": result.name,
        "shape": list(result.shape),
        "size": math.prod(result.shape),
        "zeros": list(result.zeros),
        "differ": result.differ,
        "error": _ratio(result.square_error, result.square_norm),
    }
