"""The output of the commands: tables of 80 columns, progress, JSON."""

import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text


_WIDTH = 80


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table to stdout; the first column is wrapped if it is too wide."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i, title in enumerate(header):
        ratio = 1 if i == 0 else None
        table.add_column(title, overflow="fold", no_wrap=False, ratio=ratio)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = _console(sys.stdout)
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def print_line(text: str) -> None:
    """Prints a text to stdout, wrapped to 80 columns."""
    _console(sys.stdout).print(Text(printable(text)))


def print_note(text: str) -> None:
    """Prints a note to stderr."""
    print(f"note: {printable(text)}", file=sys.stderr)


def print_json(value: Any) -> None:
    """Prints a value as JSON to stdout."""
    print(json.dumps(value, indent=2))


@contextmanager
def progress(total: int, command: str) -> Iterator[Callable[[str], None]]:
    """Yields a function to be called with the name of each tensor before its work.

    It updates a bar if stderr is a terminal, and otherwise prints one line per tensor
    to stderr. Only results go to stdout.
    """
    if sys.stderr.isatty():
        with Progress(console=_console(sys.stderr), transient=True) as bar:
            task = bar.add_task(command, total=total)
            yield lambda _: bar.advance(task)
        return
    count = itertools.count(1)

    def step(name: str) -> None:
        line = f"{command} {next(count)}/{total} {printable(name)}"
        print(line, file=sys.stderr, flush=True)

    yield step


def with_progress(names: Sequence[str], command: str) -> Iterator[str]:
    """Yields the names and reports progress before each."""
    with progress(len(names), command) as step:
        for name in names:
            step(name)
            yield name


def printable(text: str) -> str:
    """Returns the text with non-printable characters escaped: names come from files."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _console(file: Any) -> Console:
    console = Console(file=file, highlight=False)
    return Console(file=file, highlight=False, width=min(console.width, _WIDTH))
