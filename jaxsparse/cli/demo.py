"""The command `demo`."""

from importlib.resources import files


def demo() -> None:
    """Run the first example of the README.

    It plans and prunes a small model of Flax, trains it for a step, and checks it.
    """
    code = files("jaxsparse.cli").joinpath("demo.txt").read_text()
    try:
        exec(compile(code, "README.md", "exec"), {"__name__": "demo"})
    except ModuleNotFoundError as error:
        if error.name != "flax":
            raise
        raise ImportError(
            "the demo needs flax: python -m pip install 'jaxsparse[flax]'"
        ) from error
