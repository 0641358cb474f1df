"""The command `jaxsparse`, also `python -m jaxsparse`."""

import sys


def main() -> None:
    """Runs the command line; says what to install where its packages are missing."""
    try:
        from jaxsparse.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in ("rich", "typer"):
            raise
        print(
            f"error: the command line needs {error.name}: "
            "python -m pip install 'jaxsparse[cli]'",
            file=sys.stderr,
        )
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
