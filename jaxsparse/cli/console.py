"""What commands print: tables of 80 columns, progress, JSON."""

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
    """A table on stdout; long cells of the first column go on in the next line."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i, title in enumerate(header):
        table.add_column(title, overflow="fold", no_wrap=False, ratio=None if i else 1)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = _console(sys.stdout)
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def print_line(text: str) -> None:
    """A line on stdout, broken into several where it is too long."""
    _console(sys.stdout).print(Text(printable(text)))


def print_note(text: str) -> None:
    """A line on stderr."""
    print(f"note: {printable(text)}", file=sys.stderr)


def print_json(value: Any) -> None:
    """A JSON object on stdout."""
    print(json.dumps(value, indent=2))


@contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[str], None]]:
    """Gives what is to be called with each name when its turn comes.

    On a terminal there is a bar, else a line for each. Both are on stderr: stdout has
    results alone.
    """
    if sys.stderr.isatty():
        with Progress(console=_console(sys.stderr), transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda _: bar.advance(task)
        return
    done = itertools.count(1)

    def step(name: str) -> None:
        line = f"{what} {next(done)}/{total} {printable(name)}"
        print(line, file=sys.stderr, flush=True)

    yield step


def with_progress(names: Sequence[str], what: str) -> Iterator[str]:
    """The names one after the other, with their progress."""
    with progress(len(names), what) as step:
        for name in names:
            step(name)
            yield name


def printable(text: str) -> str:
    """The text with escapes for whatever would not be seen: names come from files."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _console(file) -> Console:
    console = Console(file=file, highlight=False)
    return Console(file=file, highlight=False, width=min(console.width, _WIDTH))
