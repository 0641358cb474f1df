"""Tables of one-shot pruning, from what was measured."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple


#: Pattern, method, which texts are calibrated on, and the number of the draw.
Key = tuple[str, str, str, int]

CALIBRATIONS = {"KJV": ("KJV",), "both": ("KJV", "CPython")}


class Measurement(NamedTuple):
    """One way to prune, with one draw of calibration pieces.

    Attributes:
      pattern: the pattern, "" for the dense model.
      method: the way to prune, or what some of them share.
      calibrated: which texts the pieces are from; "" for the dense model.
      draw: the number of the draw.
      perplexity: by text; of no text for what ways share.
      seconds: how long it took, evaluation left out.
      first: whether it was the first one in its process, which compiles.
      gib: the most memory that was taken so far.
    """

    pattern: str
    method: str
    calibrated: str
    draw: int
    perplexity: dict[str, float]
    seconds: float
    first: bool
    gib: float

    @property
    def key(self) -> Key:
        """What it is a measurement of."""
        return self.pattern, self.method, self.calibrated, self.draw


#: Numbers to a cell.
Cell = Callable[[Sequence[float]], str]


def median(numbers: Sequence[float]) -> str:
    """The median, if there are numbers."""
    return f"{statistics.median(numbers):.2f}" if numbers else ""


def spread(numbers: Sequence[float]) -> str:
    """The lowest and the highest, if there are several numbers."""
    return f"{min(numbers):.2f} to {max(numbers):.2f}" if len(numbers) > 1 else ""


def row(
    found: Sequence[Measurement],
    calibrations: Iterable[str],
    texts: Sequence[str],
    cell: Cell,
) -> list[str]:
    """Perplexities by calibration and text, seconds and memory."""
    figures = [
        [
            each.perplexity[text]
            for each in found
            if each.calibrated in ("", calibrated) and text in each.perplexity
        ]
        for calibrated in calibrations
        for text in texts
    ]
    if cell is spread:
        return [*map(cell, figures)]
    first = [each.seconds for each in found if each.first]
    later = [each.seconds for each in found if not each.first]
    memory = [min(each.gib for each in found)]
    return [*map(cell, [*figures, first, later, memory])]


def table(
    pattern: str,
    calibrations: Sequence[str],
    rows: Mapping[str, Sequence[str]],
    measured: Sequence[Measurement],
    cell: Cell,
) -> str:
    """Markdown; a row without figures is left out.

    Args:
      pattern: the pattern.
      calibrations: "KJV", "both", or these two.
      rows: the methods of each row, by its label: random permutations share one.
      measured: what was measured.
      cell: `median`, or `spread` for a table without seconds and memory.
    """
    texts = list(dict.fromkeys(name for each in measured for name in each.perplexity))
    columns = [f"{name}: {text}" for name in calibrations for text in texts]
    if cell is median:
        columns += ["first s", "later s", "peak GiB"]
    lines = [[f"{pattern}, calibrated on", *columns], ["---"] * (1 + len(columns))]
    for label, methods in rows.items():
        found = [
            each
            for each in measured
            if each.pattern in ("", pattern)
            and each.method in methods
            and each.calibrated in ("", *calibrations)
        ]
        cells = row(found, calibrations, texts, cell) if found else []
        if any(cells):
            lines.append([label, *cells])
    found = len(lines) > 2
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if found else ""
