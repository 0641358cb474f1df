"""The commands as one application, and its exit codes."""

import sys
import traceback
from typing import Annotated

import typer

from jaxsparse import __version__
from jaxsparse.cli.check import check
from jaxsparse.cli.compare import compare
from jaxsparse.cli.compress import compress
from jaxsparse.cli.console import printable
from jaxsparse.cli.demo import demo
from jaxsparse.cli.inspect import inspect
from jaxsparse.cli.prune import prune
from jaxsparse.cli.shrink import shrink


_EXIT_CODES = (
    "Exit codes: 0 done, or check passed; 1 check failed, the files do not have the "
    "same tensors, or broken pipe; 2 invalid file or argument; 70 internal error; 130 "
    "interrupted; 143 terminated."
)

app = typer.Typer(
    add_completion=False,
    help="Inspect, prune, compress, check and compare files of N:M sparse weights.",
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for _command, _example in (
    (inspect, "jaxsparse inspect model.safetensors"),
    (prune, "jaxsparse prune model.safetensors -o sparse.safetensors --pattern 2:4"),
    (compress, "jaxsparse compress sparse.safetensors -o small.safetensors"),
    (shrink, "jaxsparse shrink SmolLM2-135M -o smaller --calibrate text.txt"),
    (check, "jaxsparse check sparse.safetensors --pattern 2:4 && echo sparse"),
    (compare, "jaxsparse compare model.safetensors sparse.safetensors"),
    (demo, "jaxsparse demo"),
):
    app.command(epilog=f"Example: {_example}")(_command)


def _print_version(requested: bool) -> bool:
    if requested:
        print(f"jaxsparse {__version__}")
        raise typer.Exit
    return requested


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    del version  # handled by its callback


def run() -> None:
    """Runs the command that the arguments name, and exits with its exit code."""
    try:
        app(prog_name="jaxsparse")
    except (ImportError, MemoryError, OSError, TypeError, ValueError) as error:
        # Errors of the library name the tensor or file and the remedy.
        lines = str(error).splitlines() or [type(error).__name__]
        text = "\n".join(map(printable, lines))
        print(f"error: {text}", file=sys.stderr)
        sys.exit(2)
    except Exception:
        print("internal error of jaxsparse:", file=sys.stderr)
        traceback.print_exc()
        sys.exit(70)  # not 1, which means that weights are not sparse
