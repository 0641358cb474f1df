"""The output of the command line: help, tables, progress, errors."""

import io
import re
import shlex
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import jaxsparse
from jaxsparse import cli
from tests.cli.command import weights


COMMANDS = ("inspect", "prune", "compress", "check", "compare", "demo")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("check", "none.safetensors"), "there is neither a file none.safetensors nor"),
        (("check", "none.bin"), "must end in .safetensors"),
        (("check", "MODEL", "--pattern", "2-4"), "unknown pattern '2-4'"),
        (("check", "MODEL", "--rule", "nothing=2:4"), "matches none of the 7 tensors"),
        (("check", "MODEL", "--rule", "no=2:4"), "--rule 'no=2:4' matches none of the"),
        (
            ("check", "MODEL", "--rule", ".*=dense"),
            "and --any-size where the size rule",
        ),
        (("check", "MODEL", "--rule", ".*=dense"), "--rule 'REGEX=2:4@AXIS' where"),
        (
            ("check", "MODEL", "--rule", ".*ids=2:4@1"),
            "gives axis 1 to tensor 'model.po",
        ),
        (("check", "MODEL", "--rule", "2:4"), "is not REGEX=PATTERN"),
        (("check", "MODEL", "--rule", "(=2:4"), "is a regular expression"),
        (("check", "MODEL", "--layout", "tf"), "--layout"),
        (("prune", "MODEL"), "--output"),
        (("prune", "MODEL", "-o", "none/out.safetensors"), "there is no folder none"),
        (("prune", "MODEL", "-o", "out.bin"), "must end in .safetensors"),
        (("prune", "MODEL", "-o", "out"), "give the folder of the model as FILE"),
        (("prune", "MODEL", "-o", ""), "must end in .safetensors"),
        (("compress", "MODEL", "-o", "out"), "must end in .safetensors"),
        (("compress", "MODEL", "-o", "out.safetensors"), "run jaxsparse prune before"),
        (("compress", "MODEL", "-o", "o.safetensors", "--quantize", "int4"), "int4"),
    ],
)
def test_invalid_arguments(run, model, args, words):
    done = run(*(str(model) if x == "MODEL" else x for x in args))
    assert done.code == 2
    assert words in " ".join(done.err.split())


def test_a_dtype_that_cannot_be_ranked_stays_dense(run, tmp_path):
    path, out = (str(tmp_path / f"{name}.safetensors") for name in ("in", "out"))
    weights = {
        "down.weight": np.ones((16, 16), np.complex64),
        "up.weight": np.ones((16, 16), np.float32),
    }
    jaxsparse.save_sparse(path, weights)
    done = run("prune", path, "-o", out, "--plain")
    assert done.code == 0
    assert "dense: complex64 has no magnitude order" in done.out
    pruned = jaxsparse.load_sparse(out)
    np.testing.assert_array_equal(pruned["down.weight"], weights["down.weight"])
    assert (pruned["up.weight"] == 0).mean() == 0.5


def test_version_is_printed_before_anything_else(run):
    expected = (0, f"jaxsparse {jaxsparse.__version__}\n", "")
    assert run("--version") == expected
    assert run("--version", "inspect", "none.safetensors") == expected


def test_the_package_is_built_with_the_version_that_is_printed():
    root = Path(jaxsparse.__file__).parents[1]
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    assert settings["project"]["dynamic"] == ["version"]
    source = (root / settings["tool"]["hatch"]["version"]["path"]).read_text()
    assert f'\n__version__ = "{jaxsparse.__version__}"\n' in source


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(run, name):
    done = run(name, "--help")
    assert done.code == 0
    assert f"Example: jaxsparse {name}" in done.out
    assert max(map(len, done.out.splitlines())) <= 80


def test_tables_fit_80_columns_and_have_no_control_characters(run, tmp_path):
    path = tmp_path / "model.safetensors"
    names = [f"{'block.' * 20}{x}.weight" for x in ("a", "b\x1b[31mred\x07", "[bold]c")]
    names.append("conv_transpose.weight")
    shapes = [(16, 16)] * 3 + [(16, 16, 3, 3)]
    state = {n: weights(s) for n, s in zip(names, shapes, strict=True)}
    safetensors.numpy.save_file(state, path)
    output = tmp_path / "out.safetensors"
    for args in (
        ("inspect", path),
        ("check", path),
        ("prune", path, "-o", output),
        ("compare", path, output),
        ("inspect", path, "--json"),
    ):
        done = run(*args)
        assert not re.search(r"[^\t\n\x20-\x7e]", done.out + done.err)
        if "--json" not in args:
            done = run(*args, *["--force"] * (args[0] == "prune"), columns=80)
            assert not re.search(r"[^…\n\x20-\x7e]", done.out + done.err)
            assert max(map(len, done.out.splitlines())) <= 80
    assert r"b\x1b[31mred\x07.weight" in run("inspect", path).out
    assert "[bold]c.weight" in run("inspect", path).out


def test_remedies_are_options_of_the_command_line(run, tmp_path):
    path = tmp_path / "model.safetensors"
    x = {"up.weight": weights((16, 16)), "experts.up_proj": weights((4, 16, 16))}
    safetensors.numpy.save_file(x, path)
    plans = {x["leaf"]: x["plan"] for x in run("check", path, "--json").json["leaves"]}
    assert plans["experts.up_proj"] == (
        "dense: ambiguous: 'up_proj' of rank 3; give --rule 'REGEX=2:4@AXIS'"
    )
    x = {"params/up/kernel": weights((16, 16)), "params/q/kernel": weights((4, 16, 2))}
    safetensors.numpy.save_file(x, path)
    assert "'q'; give --rule 'REGEX=2:4@AXIS'\"," in run("check", path, "--json").out
    safetensors.numpy.save_file({"up.weight": np.ones((16, 16), "c8")}, path)
    done = run("check", path)
    assert done.code == 2
    assert "\nGive a --rule that matches a weight" in done.err


def test_a_rule_that_is_a_name_shows_the_expression_to_give(run, tmp_path):
    path = tmp_path / "model.safetensors"
    names = ["w[0].weight", "w0.weight", "l.0.up.weight", "l.1.up.weight", "(a.weight"]
    state = {name: weights((16, 16)) for name in names}
    safetensors.numpy.save_file(state, path)
    table = run("prune", path, "--dry-run", columns=80).out
    for name, expected in (
        ("w[0].weight", ["w[0].weight"]),
        ("l.{0,1}.up.weight", ["l.0.up.weight", "l.1.up.weight"]),
        ("(a.weight", ["(a.weight"]),
    ):
        assert name in table
        done = run("check", path, "--rule", f"{name}=dense")
        assert done.code == 2
        assert "regular expression" in done.err
        (argument,) = shlex.split(done.err.split("give --rule ")[1])
        plans = run("check", path, "--json", "--rule", argument).json["leaves"]
        dense = [x["leaf"] for x in plans if x["plan"].startswith("dense: rule")]
        assert sorted(dense) == expected


def test_prune_says_where_no_head_was_recognised(run, tmp_path):
    path = tmp_path / "model.safetensors"
    state = {f"fc{i}.weight": weights((16, 16)) for i in (1, 2)}
    safetensors.numpy.save_file(state, path)
    line = "no output layer was recognised: if one of these tensors is one, keep it "
    for rule, said in (("fc1.weight=1:4", True), ("fc2.weight=dense", False)):
        done = run("prune", path, "--dry-run", "--rule", rule)
        assert (line + "dense with --rule 'REGEX=dense'" in done.out) == said
    assert line not in run("prune", path, "--dry-run", "--head").out
    assert run("check", path).code == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar(run, model, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run("inspect", model).code == 0
    assert "100%" in terminal.getvalue()
    assert "0:00:00" in terminal.getvalue()  # the time that is left
    assert "\x1b" in terminal.getvalue()


def forget(monkeypatch):
    """Removes the command line from the imported modules."""
    monkeypatch.setattr(jaxsparse, "cli", cli)
    for name in [x for x in sys.modules if x.startswith("jaxsparse.cli")]:
        monkeypatch.delitem(sys.modules, name)


def test_missing_packages_are_named_with_the_remedy(run, monkeypatch):
    forget(monkeypatch)
    monkeypatch.setitem(sys.modules, "typer", None)
    done = run("inspect", "model.safetensors")
    assert done.code == 2
    assert "python -m pip install 'jaxsparse[cli]'" in done.err


def test_the_demo_is_the_first_example_of_the_readme(run, monkeypatch):
    root = Path(__file__).parents[2]
    readme = (root / "README.md").read_text()
    blocks = re.findall(r"```(?:python|text)\n(.*?)```", readme, re.DOTALL)
    assert (root / "jaxsparse/cli/demo.txt").read_text() == blocks[0]
    # The tests of the README run its code; any code will do here.
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "print('as it says')")
    assert run("demo").out == "as it says\n"


def test_a_closed_stderr_is_ignored(run, model, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    done = run("inspect", model)
    assert (done.code, done.out.startswith("tensor\t")) == (0, True)
    sys.stderr.close()
    monkeypatch.setattr(sys, "stderr", None)
    done = run("inspect", "none.safetensors")
    assert (done.code, done.out) == (2, "")
    sys.stderr.close()


def test_characters_that_an_encoding_lacks_are_escaped(run, model, monkeypatch):
    output = model.with_name("ö.safetensors")
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    assert run("prune", model, "-o", output).code == 0
    stdout.seek(0)
    assert "/\\xf6.safetensors" in stdout.read().replace("\n", "")  # wrapped


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyError("mine"), 70, "KeyError: 'mine'"),
        (MemoryError("none for 'a'"), 2, "error: none for 'a'"),
        (MemoryError(), 2, "error: MemoryError"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_an_internal_error_has_its_own_exit_code(
    run, model, monkeypatch, error, code, words
):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr("jaxsparse.cli.check.plan_leaves", fails)
    done = run("check", model)
    assert (done.code, done.out) == (code, "")
    assert done.err.splitlines()[-1:] == [words] * bool(words)
    assert (code == 70) == done.err.startswith("internal error of jaxsparse:\n")


def test_an_interrupt_during_imports_is_an_interrupt(run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    forget(monkeypatch)
    monkeypatch.setattr(sys, "meta_path", [type("", (), {"find_spec": interrupted})])
    done = run("demo")
    assert (done.code, done.err) == (130, "interrupted\n")
