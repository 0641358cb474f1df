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


@pytest.mark.sweep(keep=["README"], whole=True)
@pytest.mark.parametrize("name", sorted(PAGES))
def test_the_code_of_a_page_runs_and_prints_what_the_page_says(name):
    guide.run(ROOT / name)


ENTRY = re.compile(
    r"^\.\. auto(?:class|exception|function):: (\w+)(?:\(\))?$", re.MULTILINE
)
SUMMARY = re.compile(r"^   (\w+)$", re.MULTILINE)


def test_every_public_name_has_one_entry_in_the_chapters_of_the_reference():
    chapters = sorted((ROOT / "docs" / "reference").glob("*.md"))
    entries = [name for path in chapters for name in ENTRY.findall(path.read_text())]
    public = [
        name
        for name, value in vars(js).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    ]
    drawn = [name for name in vars(plots) if name.startswith("plot_")]
    assert sorted(entries) == sorted(public + drawn)
    assert all(getattr(plots, name).__doc__ for name in drawn)


def test_the_first_page_of_the_reference_lists_each_chapter_in_its_order():
    index = (ROOT / "docs" / "reference.md").read_text()
    listed = re.findall(r"^reference/\w+$", index, re.MULTILINE)
    chapters = (ROOT / "docs" / "reference").glob("*.md")
    assert sorted(listed) == sorted(f"reference/{path.stem}" for path in chapters)
    for chapter in listed:
        (section,) = re.findall(
            rf"\({chapter}\.md\)\n(.*?)(?:^## |\Z)", index, re.M | re.S
        )
        entries = ENTRY.findall((ROOT / "docs" / f"{chapter}.md").read_text())
        assert SUMMARY.findall(section) == entries


def test_the_landing_page_has_a_card_for_every_page():
    index = (ROOT / "docs" / "index.md").read_text()
    cards = re.findall(r"^:link: ([\w/]+)$", index, re.MULTILINE)
    trees = re.findall(r"```{toctree}\n(.*?)```", index, re.DOTALL)
    listed = [name for tree in trees for name in re.findall(r"^[\w/]+$", tree, re.M)]
    assert cards == listed
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages <= set(cards)


@pytest.mark.parametrize("extra", ["examples", "test"])
def test_the_two_commands_are_there_in_one_line_each(extra):
    commands = re.findall(r"^python -m pip install -e .*$", README, re.MULTILINE)
    assert sum(f"[{extra}]" in command for command in commands) == 1
