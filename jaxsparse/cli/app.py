"""All commands, and what becomes of errors."""

import sys
import traceback

import typer

from jaxsparse.cli.check import check
from jaxsparse.cli.compare import compare
from jaxsparse.cli.console import printable
from jaxsparse.cli.demo import demo
from jaxsparse.cli.inspect import inspect
from jaxsparse.cli.prune import prune


_EXIT_CODES = (
    "Exit codes: 0 done, or it obeys; 1 it does not obey, leaves differ, or nobody "
    "reads on; 2 a file or an argument is refused; 70 a fault of jaxsparse; 130 "
    "interrupted."
)

app = typer.Typer(
    add_completion=False,
    help="N:M sparse weights in files: look at them, prune them, check them.",
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for _command, _example in (
    (inspect, "jaxsparse inspect model.safetensors"),
    (prune, "jaxsparse prune model.safetensors -o sparse.safetensors --pattern 2:4"),
    (check, "jaxsparse check sparse.safetensors --pattern 2:4 && echo sparse"),
    (compare, "jaxsparse compare model.safetensors sparse.safetensors"),
    (demo, "jaxsparse demo"),
):
    app.command(epilog=f"Example: {_example}")(_command)


def run() -> None:
    """Runs the command that the arguments name, and leaves with its exit code."""
    try:
        app(prog_name="jaxsparse")
    except (ImportError, MemoryError, OSError, TypeError, ValueError) as error:
        # What the library refuses, by names and with the remedy.
        lines = str(error).splitlines() or [type(error).__name__]
        text = "\n".join(map(printable, lines))
        print(f"error: {text}", file=sys.stderr)
        sys.exit(2)
    except Exception:
        traceback.print_exc()
        sys.exit(70)  # not 1, which says that weights are not sparse
