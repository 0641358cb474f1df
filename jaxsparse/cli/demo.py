"""The command `demo`."""

from importlib.resources import files


def demo() -> None:
    """Run the first example of the README.

    It prunes a small Flax model, trains it for one step, and checks it.
    """
    code = files("jaxsparse.cli").joinpath("demo.txt").read_text()
    try:
        exec(compile(code, "README.md", "exec"), {"__name__": "demo"})
    except ModuleNotFoundError as error:
        if error.name != "flax":
            raise
        raise ImportError(
            "the demo requires flax: python -m pip install 'jaxsparse[flax]'"
        ) from error
