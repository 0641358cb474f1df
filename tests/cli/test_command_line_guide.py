"""Runs the code and the commands of the guide to the command line."""

import re
import shlex
from pathlib import Path

from tests.cli.command import runner


GUIDE = Path(__file__).parents[2] / "docs" / "command_line.md"


def test_the_guide_to_the_command_line_runs(tmp_path, capsys, monkeypatch):
    run = runner(capsys, monkeypatch)
    blocks = re.findall(
        r"```(python|text|console)\n(.*?)```", GUIDE.read_text(), re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    namespace, printed, code, commands = {}, "", 0, 0
    for language, block in blocks:
        if language == "python":
            exec(compile(block, GUIDE.name, "exec"), namespace)
            printed = capsys.readouterr().out
        elif language == "text":
            assert printed == block
        else:
            for command, expected in re.findall(
                r"^\$ (.*)\n((?:[^$].*\n)*)", block, re.MULTILINE
            ):
                if command == "echo $?":
                    assert expected == f"{code}\n"
                    continue
                name, *args = shlex.split(command)
                assert name == "jaxsparse"
                done = run(*args, columns=88)
                code, printed, commands = done.code, done.out, commands + 1
                assert re.sub(r" +\n", "\n", printed) == expected, command
    assert commands == 8
