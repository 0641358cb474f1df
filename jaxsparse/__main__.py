"""The command `jaxsparse`, also run as `python -m jaxsparse`."""

import io
import os
import signal
import sys


def main() -> None:
    """Runs the command line, or prints what to install if its packages are missing."""
    _prepare_streams()
    _exit_on_signals()
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


def _exit_on_signals() -> None:
    """Makes SIGTERM and SIGHUP raise `SystemExit`, so that files are cleaned up.

    A signal that is ignored, as by nohup, stays ignored. Only the first one counts: a
    second one would interrupt the clean-up.
    """
    signals = [x for x in ("SIGTERM", "SIGHUP") if hasattr(signal, x)]
    numbers = [getattr(signal, x) for x in signals]
    handled = [x for x in numbers if signal.getsignal(x) == signal.SIG_DFL]

    def stop(number: int, _: object) -> None:
        for other in handled:
            signal.signal(other, signal.SIG_IGN)
        sys.exit(128 + number)  # as a shell reports the signal

    for number in handled:
        signal.signal(number, stop)


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
