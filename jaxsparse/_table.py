"""Plain-text tables, with equal layers of a model folded into one line."""

import re
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces apart."""
    lines = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def fold(rows: Iterable[tuple[str, tuple[str, ...]]]) -> list[tuple[str, ...]]:
    """Folds rows `(path, cells)` that differ only by numbers in the path.

    >>> fold([("l_0/w", ("2:4",)), ("l_1/w", ("2:4",)), ("b", ("dense",))])
    [('l_*/w (x2)', '2:4'), ('b', 'dense')]
    """
    folded: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for path, cells in rows:
        key = re.sub(r"\d+", "*", path), cells
        folded.setdefault(key, []).append(path)
    return [
        (paths[0] if len(paths) == 1 else f"{pattern} (x{len(paths)})", *cells)
        for (pattern, cells), paths in folded.items()
    ]


def shape_text(shape: tuple[int, ...]) -> str:
    """`64x32`; `scalar` for no axes."""
    return "x".join(map(str, shape)) or "scalar"
