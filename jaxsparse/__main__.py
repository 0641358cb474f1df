"""The command `jaxsparse`, also `python -m jaxsparse`."""

import io
import os
import sys


def main() -> None:
    """Runs the command line; says what to install where its packages are missing."""
    _mend_streams()
    try:
        from jaxsparse.cli.app import run

        run()
    except ModuleNotFoundError as error:
        if error.name not in ("rich", "typer"):
            raise
        print(
            f"error: the command line needs {error.name}: "
            "python -m pip install 'jaxsparse[cli]'",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _mend_streams() -> None:
    """Lets results be printed whatever stdout and stderr are.

    One that is closed leads nowhere, else the next file that is opened would take its
    place. Of other encodings than UTF-8 the rest is escaped.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
