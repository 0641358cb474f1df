"""The output of the commands: tables, lines, notes, JSON."""

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from jaxsparse._trees import fit_table, fold


#: The name and the other cells of a row.
Row = tuple[str, tuple[str, ...]]


def print_table(
    header: Sequence[str], rows: Iterable[Row], total: Sequence[str], *, plain: bool
) -> None:
    """Prints a table of tensors and its last row to stdout.

    On a terminal it is as wide as that, and tensors whose names differ only by numbers
    share a row. Otherwise, or if `plain`, see `plain_lines`.
    """
    if plain or not sys.stdout.isatty():
        print("\n".join(plain_lines(header, rows, total)))
        return
    names = ((printable(name), tuple(map(printable, cells))) for name, cells in rows)
    first, *lines = fit_table(header, [*fold(names), tuple(total)], _width())
    Console().print(Text(first, style="bold"), soft_wrap=True)
    print("\n".join(lines))


def plain_lines(
    header: Sequence[str], rows: Iterable[Row], total: Sequence[str]
) -> list[str]:
    r"""Returns the lines of a table, one for each tensor, with tabs between the cells.

    >>> plain_lines(("tensor", "shape"), [("up.weight", ("4x4",))], ("total", "16"))
    ['tensor\tshape', 'up.weight\t4x4', 'total\t16']
    """
    lines = [header, *((name, *cells) for name, cells in rows), total]
    return ["\t".join(map(printable, line)) for line in lines]


def print_line(text: str) -> None:
    """Prints a text to stdout, on a terminal wrapped to its width."""
    text = printable(text)
    if sys.stdout.isatty():
        text = textwrap.fill(text, _width(), break_on_hyphens=False)
    print(text)


def print_note(text: str) -> None:
    """Prints a note to stderr."""
    print(f"note: {printable(text)}", file=sys.stderr)


def print_json(value: Any) -> None:
    """Prints a value as JSON to stdout."""
    print(json.dumps(value, indent=2))


def printable(text: str) -> str:
    """Returns the text with non-printable characters escaped: names come from files."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _width() -> int:
    return shutil.get_terminal_size().columns
