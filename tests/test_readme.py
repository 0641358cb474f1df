"""The README's code runs, in order, and prints what the README says it prints."""

import re
from pathlib import Path

import pytest

import jaxsparse as js


README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```(python|text)\n(.*?)```", README, re.DOTALL)


def test_every_block_of_the_readme_runs(capsys):
    namespace = {}
    printed = ""
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "README.md", "exec"), namespace)
            printed = capsys.readouterr().out
        else:
            assert block.strip() == printed.strip()
    assert js.sparsity(namespace["mlp"]) > 0.3


@pytest.mark.parametrize("extra", ["examples", "test"])
def test_the_two_commands_are_there_in_one_line_each(extra):
    commands = re.findall(r"^python -m pip install -e .*$", README, re.MULTILINE)
    assert sum(f"[{extra}]" in command for command in commands) == 1
