"""The progress of a command, on stderr: only results go to stdout."""

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

from jaxsparse.cli.console import printable


@contextmanager
def progress(
    sizes: Mapping[str, int], command: str, *, verbose: bool
) -> Iterator[Callable[[str], None]]:
    """Yields a function to be called with the name of each tensor before its work.

    If `verbose` it prints a line for each tensor; else it updates a bar with the time
    that is left if stderr is a terminal, and does nothing if it is not.

    Args:
      sizes: the size in bytes of each tensor by name, in any order.
      command: the name of the command.
      verbose: whether lines are printed.
    """
    if verbose:
        count = itertools.count(1)

        def print_step(name: str) -> None:
            line = f"{command} {next(count)}/{len(sizes)} {printable(name)}"
            print(line, file=sys.stderr, flush=True)

        yield print_step
    elif sys.stderr.isatty():
        with Progress(console=Console(file=sys.stderr), transient=True) as bar:
            task = bar.add_task(command, total=sum(sizes.values()))
            in_work: list[str] = []

            def advance(name: str) -> None:
                bar.advance(task, sum(sizes[x] for x in in_work))
                in_work[:] = [name]

            yield advance
            bar.update(task, completed=sum(sizes.values()))
    else:
        yield lambda _: None


def with_progress(
    sizes: Mapping[str, int], command: str, *, verbose: bool
) -> Iterator[str]:
    """Yields the names and reports progress before each."""
    with progress(sizes, command, verbose=verbose) as step:
        for name in sizes:
            step(name)
            yield name
