"""The code of README and guides runs, in order, and prints what they say it prints."""

import re
from pathlib import Path

import pytest

import jaxsparse as js


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def run(name, capsys):
    """Runs the blocks of a page; what they print has to be as a text block says."""
    text = (ROOT / name).read_text()
    namespace, printed = {}, ""
    for language, block in re.findall(r"```(python|text)\n(.*?)```", text, re.DOTALL):
        if language == "python":
            exec(compile(block, name, "exec"), namespace)
            printed = capsys.readouterr().out
        else:
            assert block.strip() == printed.strip()
    return namespace


def test_every_block_of_the_readme_runs(capsys):
    assert js.sparsity(run("README.md", capsys)["mlp"]) > 0.3


def test_the_guide_to_calibrated_pruning_runs(capsys):
    found = run("docs/calibration.md", capsys)["found"]
    assert js.sparsity(found.params) == 0.5


@pytest.mark.parametrize("extra", ["examples", "test"])
def test_the_two_commands_are_there_in_one_line_each(extra):
    commands = re.findall(r"^python -m pip install -e .*$", README, re.MULTILINE)
    assert sum(f"[{extra}]" in command for command in commands) == 1
