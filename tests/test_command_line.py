"""The command line on files that are as they should be."""

import io
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

import jaxsparse as js
from tests.command import pruned, runner
from tests.compressed import assert_same_bits


COMMANDS = ("inspect", "prune", "check", "compare", "demo")


@pytest.fixture
def run(capsys, monkeypatch):
    return runner(capsys, monkeypatch)


def weights(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def torch_state():
    return {
        "model.embed_tokens.weight": weights((32, 64)),
        "model.layers.0.up.weight": weights((32, 64), 1, ml_dtypes.bfloat16),
        "model.layers.0.up.bias": weights((32,), 2),
        "model.layers.0.conv.weight": weights((8, 16, 3, 3), 3),
        "model.layers.0.wide.weight": weights((32, 64), 4, np.float64),
        "model.position_ids": np.arange(4),
        "lm_head.weight": weights((32, 64), 5),
    }


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(torch_state(), path, metadata={"format": "pt"})
    return path


def load(path):
    """By the package, which knows no index."""
    return safetensors.numpy.load_file(path)


def test_prune_writes_what_the_library_finds_and_nothing_else(run, model, tmp_path):
    output = tmp_path / "out.safetensors"
    done = run("prune", model, "-o", output)
    assert done.code == 0
    found, state = load(output), torch_state()
    sparse = {f"model.layers.0.{x}.weight" for x in ("up", "conv", "wide")}
    assert found.keys() == state.keys()
    for name, weight in state.items():
        expected = pruned(weight, 2, 4, 1) if name in sparse else weight
        assert_same_bits(found[name], expected)
    with safetensors.safe_open(output, "np") as file:
        assert file.metadata() == {"format": "pt"}
    assert {x.name for x in tmp_path.iterdir()} == {model.name, output.name}
    assert "dense: embedding" in done.out
    assert done.err.splitlines()[-1].startswith("prune 7/7 ")

    assert run("check", output).code == 0
    assert run("check", model).code == 1
    assert run("check", output, "--pattern", "1:4").code == 1
    told = run("check", model, "--json").told
    assert {x["leaf"] for x in told["leaves"] if x["fault"]} == sparse

    done = run("compare", model, output, "--json")
    leaves = {x["leaf"]: x for x in done.told["leaves"]}
    up = leaves["model.layers.0.up.weight"]
    before = state["model.layers.0.up.weight"].astype(np.float64)
    after = pruned(before, 2, 4, 1)
    assert (up["zeros"], up["differ"]) == ([0, 1024], 1024)
    error = np.linalg.norm(before - after) / np.linalg.norm(before)
    assert up["error"] == pytest.approx(error, rel=1e-12)
    assert leaves["lm_head.weight"]["differ"] == 0
    assert done.code == 0


def test_rules_come_first_and_sizes_and_heads_can_be_had(run, model, tmp_path):
    output = tmp_path / "out.safetensors"
    rules = ("--rule", ".*up.*=1:4", "--rule", ".*wide.*=2:4@0", "--rule", ".*=dense")
    assert run("prune", model, "-o", output, *rules).code == 0
    found, state = load(output), torch_state()
    up, wide = "model.layers.0.up.weight", "model.layers.0.wide.weight"
    assert_same_bits(found[up], pruned(state[up], 1, 4, 1))
    assert_same_bits(found[wide], pruned(state[wide], 2, 4, 0))
    conv = "model.layers.0.conv.weight"
    assert_same_bits(found[conv], state[conv])

    done = run("check", model, "--head", "--json").told
    assert {x["leaf"]: x["plan"] for x in done["leaves"]}["lm_head.weight"] == (
        "2:4 along axis 1"
    )
    small = tmp_path / "small.safetensors"
    safetensors.numpy.save_file({"up.weight": weights((4, 8))}, small)
    assert run("check", small).code == 2
    assert run("check", small, "--any-size").code == 1


def test_nothing_is_written_over_unless_forced(run, model, tmp_path):
    output = tmp_path / "out.safetensors"
    output.write_bytes(b"mine")
    done = run("prune", model, "-o", output)
    assert (done.code, output.read_bytes()) == (2, b"mine")
    assert f"{output} is there already: give --force" in done.err
    assert run("prune", model, "-o", output, "--force").code == 0
    assert run("check", output).code == 0
    before = model.read_bytes()
    assert run("prune", model, "-o", model, "--force").code == 2
    assert model.read_bytes() == before


def test_several_files_stay_several(run, tmp_path):
    state, weight_map = torch_state(), {}
    for i, (name, weight) in enumerate(state.items(), 1):
        weight_map[name] = f"model-{i:05}-of-{len(state):05}.safetensors"
        safetensors.numpy.save_file({name: weight}, tmp_path / weight_map[name])
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    output = tmp_path / "out.safetensors.index.json"
    assert run("prune", index, "-o", output).code == 0
    told = json.loads(output.read_text())
    assert told["weight_map"].keys() == state.keys()
    assert len(set(told["weight_map"].values())) == len(state)
    assert told["metadata"]["total_size"] == sum(x.nbytes for x in state.values())
    name = "model.layers.0.up.weight"
    found = load(tmp_path / told["weight_map"][name])[name]
    assert_same_bits(found, pruned(state[name], 2, 4, 1))
    assert run("check", output).code == 0
    assert run("prune", index, "-o", output).code == 2


def flax_params():
    return {
        "up": {"kernel": jnp.asarray(weights((64, 32))), "bias": jnp.ones(32)},
        "layers": [jnp.asarray(weights((16,), 1, ml_dtypes.bfloat16))],
    }


def test_checkpoints_of_orbax(run, tmp_path):
    tree = {"params": flax_params(), "step": 3, "none": None}
    tree["opt_state"] = {"mu": flax_params()}
    model, output = tmp_path / "model", tmp_path / "out"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(model, tree)
    done = run("prune", model, "-o", output)
    assert done.code == 0
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(output)
    kernel = np.asarray(tree["params"]["up"]["kernel"])
    expected = jax.tree.map(lambda x: x, tree)
    expected["params"]["up"]["kernel"] = pruned(kernel, 2, 4, 0)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert {x.name for x in tmp_path.iterdir()} == {"model", "out"}

    assert run("check", output).code == 0
    leaves = {x["leaf"]: x for x in run("inspect", output, "--json").told["leaves"]}
    assert leaves["params/up/kernel"]["pattern"] == "2:4"
    assert leaves["params/layers/0"]["dtype"] == "bfloat16"
    assert run("prune", model, "-o", output).code == 2
    assert run("prune", model, "-o", output, "--force", "--pattern", "1:4").code == 0
    assert run("check", output, "--pattern", "1:4").code == 0
    assert {x.name for x in tmp_path.iterdir()} == {"model", "out"}
    done = run("inspect", tmp_path)
    assert "no Orbax checkpoint: give one of its folders ['model', 'out']" in done.err
    (tmp_path / "mine").mkdir()
    done = run("prune", model, "-o", tmp_path / "mine", "--force")
    assert (done.code, (tmp_path / "mine").is_dir()) == (2, True)
    (output / "_METADATA").write_text("{")
    done = run("inspect", output)
    assert (done.code, len(done.err.splitlines())) == (2, 1)


def test_checkpoints_of_zarr_3_and_what_an_interrupt_leaves(run, tmp_path, monkeypatch):
    kernel = weights((256, 64))
    model, output = tmp_path / "model", tmp_path / "out"
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(model, args=ocp.args.PyTreeSave({"up": {"kernel": kernel}}))
        assert run("prune", model, "-o", output).code == 0
        found = checkpointer.restore(output)["up"]["kernel"]
    np.testing.assert_array_equal(found, pruned(kernel, 2, 4, 0))
    size = lambda path: sum(x.stat().st_size for x in path.rglob("*") if x.is_file())
    assert size(output) < size(model)  # its zeros are compressed, and nothing is twice

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxsparse.cli.prune.prune_weight", interrupted)
    assert run("prune", model, "-o", output, "--force").code == 130
    assert {x.name for x in tmp_path.iterdir()} == {"model", "out"}
    assert run("check", output).code == 0


def test_compressed_files_are_looked_at_and_not_pruned_again(run, tmp_path):
    path = tmp_path / "model.safetensors"
    params = flax_params()
    js.save_sparse(path, js.compress_params(params))
    (leaf,) = (
        x for x in run("inspect", path, "--json").told["leaves"] if x["compressed"]
    )
    assert (leaf["leaf"], leaf["pattern"], leaf["axes"]) == ("up/kernel", "2:4", [0])
    assert run("check", path).code == 0
    done = run("prune", path, "-o", tmp_path / "out.safetensors")
    assert (done.code, "compressed already" in done.err) == (2, True)


def grouped(n, m, axis):
    """Exactly `n` of each group of `m`, in ascending places."""
    line = np.zeros((4, 32), np.float32)
    line.reshape(4, -1, m)[:, :, :n] = np.nan
    return line if axis == 1 else line.T.copy()


def test_inspect_finds_the_finest_pattern(run, tmp_path):
    both = np.kron(np.ones((8, 8)), np.eye(4)).astype(np.float32)
    subnormal = np.full((4, 8), 1e-45, np.float32)
    leaves = {
        "a": grouped(2, 4, 1),
        "b": grouped(1, 4, 0),
        "c": grouped(5, 16, 1),
        "both": both,
        "zero": -np.zeros((4, 8), np.float32),
        "dense": subnormal,
        "scalar": np.float32(3),
        "ints": np.array([[0, 3], [-128, 0]], np.int8),
    }
    path = tmp_path / "model.safetensors"
    js.save_sparse(path, leaves)
    told = run("inspect", path, "--json").told["leaves"]
    found = {x["leaf"]: (x["pattern"], x["axes"], x["zeros"]) for x in told}
    assert found["a"] == ("2:4", [1], 64)
    assert found["b"] == ("1:4", [0], 96)
    assert found["c"] == ("5:16", [1], 88)
    assert found["both"] == ("1:4", [0, 1], 768)
    assert found["zero"] == (None, [], 32)
    assert found["dense"] == (None, [], 0)
    assert found["scalar"] == (None, [], 0)
    assert found["ints"] == ("1:2", [0, 1], 2)


def test_compare_tells_leaves_that_are_not_in_both(run, tmp_path):
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    x = weights((4,))
    safetensors.numpy.save_file({"same": x, "shape": x, "gone": x}, a)
    safetensors.numpy.save_file({"same": x, "shape": x[:2].copy(), "new": x}, b)
    done = run("compare", a, b)
    assert done.code == 1
    inf = np.array([1, np.inf, np.nan, 0], np.float32)
    safetensors.numpy.save_file(
        {"x": inf, "y": inf, "z": 0 * x}, tmp_path / "c.safetensors"
    )
    safetensors.numpy.save_file({"x": inf, "y": x, "z": x}, tmp_path / "d.safetensors")
    told = run(
        "compare", tmp_path / "c.safetensors", tmp_path / "d.safetensors", "--json"
    ).told
    assert [leaf["error"] for leaf in told["leaves"]] == [0.0, None, None]
    for text in ("only in a", "only in b", "float32[4] / float32[2]", "1 of 4 leaves"):
        assert text in done.out
    assert run("compare", a, a).code == 0


def test_the_layout_is_asked_for_where_names_do_not_tell(run, tmp_path):
    path = tmp_path / "model.safetensors"
    for state in (
        {"w": weights((16, 16))},
        {"a.weight": weights((16, 16)), "b/kernel": weights((16, 16))},
    ):
        safetensors.numpy.save_file(state, path)
        done = run("check", path)
        assert (done.code, str(path) in done.err) == (2, True)
        assert "give --layout torch" in done.err
    assert run("check", path, "--layout", "torch", "--json").told["leaves"][0] == {
        "leaf": "a.weight",
        "plan": "2:4 along axis 1",
        "fault": "'a.weight' of shape (16, 16), 2:4 along axis 1: 64 of 64 groups keep "
        "more than 2; the first, with 4, starts at (0, 0)",
    }


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("check", "none.safetensors"), "there is no file none.safetensors"),
        (("check", "none.bin"), "has to end in .safetensors"),
        (("check", "MODEL", "--pattern", "2-4"), "unknown pattern '2-4'"),
        (("check", "MODEL", "--rule", "nothing=2:4"), "matches none of the 7 leaves"),
        (("check", "MODEL", "--rule", "2:4"), "is no REGEX=PATTERN"),
        (("check", "MODEL", "--rule", "(=2:4"), "is a regular expression"),
        (("check", "MODEL", "--layout", "tf"), "--layout"),
        (("prune", "MODEL"), "--output"),
        (("prune", "MODEL", "-o", "none/out.safetensors"), "there is no folder none"),
        (("prune", "MODEL", "-o", "out.bin"), "has to end in .safetensors"),
    ],
)
def test_arguments_that_are_refused(run, model, args, words):
    done = run(*(str(model) if x == "MODEL" else x for x in args))
    assert done.code == 2
    assert words in " ".join(done.err.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(run, name):
    done = run(name, "--help")
    assert done.code == 0
    assert f"Example: jaxsparse {name}" in done.out
    assert max(map(len, done.out.splitlines())) <= 80


def test_tables_fit_80_columns_and_pipes_get_no_control_characters(
    run, tmp_path, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")
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
        assert not re.search(r"[^\n\x20-\x7e]", done.out + done.err)
        if "--json" not in args:
            assert max(map(len, done.out.splitlines())) <= 80
    assert r"\x1b" in run("inspect", path).out.replace("\n", "")
    assert "[bold]" in run("inspect", path).out.replace("\n", "")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar(run, model, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run("inspect", model).code == 0
    assert "100%" in terminal.getvalue()
    assert "\x1b" in terminal.getvalue()


def test_without_its_packages_it_says_what_to_install(run, monkeypatch):
    for name in [x for x in sys.modules if x.startswith("jaxsparse.cli")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "typer", None)
    done = run("inspect", "model.safetensors")
    assert done.code == 2
    assert "python -m pip install 'jaxsparse[cli]'" in done.err


def test_the_demo_is_the_first_example_of_the_readme(run, monkeypatch):
    root = Path(__file__).parent.parent
    readme = (root / "README.md").read_text()
    blocks = re.findall(r"```(?:python|text)\n(.*?)```", readme, re.DOTALL)
    assert (root / "jaxsparse/cli/demo.txt").read_text() == blocks[0]
    # Its code runs with the README; here any other will do.
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "print('as it says')")
    assert run("demo").out == "as it says\n"
