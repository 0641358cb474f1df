"""The command `jaxsparse`, also run as `python -m jaxsparse`."""

import io
import os
import sys


def main() -> None:
    """Runs the command line, or prints what to install if its packages are missing."""
    _prepare_streams()
    try:
        from jaxsparse.cli.app import run

        run()
    except ModuleNotFoundError as error:
        if error.name not in ("rich", "typer"):
            raise
        print(
            f"error: the command line requires {error.name}: "
            "python -m pip install 'jaxsparse[cli]'",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _prepare_streams() -> None:
    """Makes every text printable on stdout and stderr.

    A closed stream is opened on the null device; otherwise the next file that is opened
    would get its file descriptor. Characters that the encoding of a stream lacks are
    escaped.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
