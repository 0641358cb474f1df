"""The code of README and guides runs, in order, and prints what they say it prints."""

import inspect
import re
from pathlib import Path

import pytest

import jaxsparse as js
from jaxsparse import plots
from tests.docs import guide


ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
APART = {"command_line.md", "several_devices.md"}  # have tests of their own
NAMES = {path.name for path in (ROOT / "docs").glob("*.md")} - APART
PAGES = ["README.md", *(f"docs/{name}" for name in NAMES)]


@pytest.mark.sweep(keep=["README"])
@pytest.mark.parametrize("name", sorted(PAGES))
def test_the_code_of_a_page_runs_and_prints_what_the_page_says(name):
    guide.run(ROOT / name)


def test_every_public_name_is_in_the_reference():
    reference = (ROOT / "docs" / "reference.md").read_text()
    listed = re.findall(
        r"^\.\. auto(?:class|exception|function):: (\w+)$", reference, re.M
    )
    public = [
        name
        for name, value in vars(js).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    ]
    assert sorted(listed) == sorted(public)
    assert ".. automodule:: jaxsparse.plots" in reference
    assert all(
        getattr(plots, name).__doc__ for name in vars(plots) if name[:5] == "plot_"
    )


@pytest.mark.parametrize("extra", ["examples", "test"])
def test_the_two_commands_are_there_in_one_line_each(extra):
    commands = re.findall(r"^python -m pip install -e .*$", README, re.MULTILINE)
    assert sum(f"[{extra}]" in command for command in commands) == 1
