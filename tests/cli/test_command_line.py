"""The command line on valid files."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import jaxsparse as js
from tests.cli.command import flax_params, pruned, torch_state, weights
from tests.compressed.layout_oracle import assert_same_bits


def load(path):
    """Loads a file with the safetensors package."""
    return safetensors.numpy.load_file(path)


def test_prune_writes_what_the_library_prunes_and_nothing_else(run, model, tmp_path):
    output = tmp_path / "out.safetensors"
    done = run("prune", model, "-o", output, "--verbose")
    assert done.code == 0
    result, state = load(output), torch_state()
    sparse = {f"model.layers.0.{x}.weight" for x in ("up", "conv", "wide")}
    assert result.keys() == state.keys()
    for name, weight in state.items():
        expected = pruned(weight, 2, 4, 1) if name in sparse else weight
        assert_same_bits(result[name], expected)
    with safetensors.safe_open(output, "np") as file:
        assert file.metadata() == {"format": "pt"}
    assert {x.name for x in tmp_path.iterdir()} == {model.name, output.name}
    assert "dense: embedding" in done.out
    assert done.err.splitlines()[-1].startswith("prune 7/7 ")

    assert run("check", output).code == 0
    assert run("check", model).code == 1
    assert run("check", output, "--pattern", "1:4").code == 1
    report = run("check", model, "--json").json
    assert {x["leaf"] for x in report["leaves"] if x["fault"]} == sparse

    done = run("compare", model, output, "--json")
    leaves = {x["leaf"]: x for x in done.json["leaves"]}
    up = leaves["model.layers.0.up.weight"]
    before = state["model.layers.0.up.weight"].astype(np.float64)
    after = pruned(before, 2, 4, 1)
    assert (up["zeros"], up["differ"]) == ([0, 1024], 1024)
    error = np.linalg.norm(before - after) / np.linalg.norm(before)
    assert up["error"] == pytest.approx(error, rel=1e-12)
    assert leaves["lm_head.weight"]["differ"] == 0
    assert done.code == 0


def test_rules_come_before_the_pattern_and_sizes_and_head_are_options(
    run, model, tmp_path
):
    output = tmp_path / "out.safetensors"
    rules = ("--rule", ".*up.*=1:4", "--rule", ".*wide.*=2:4@0", "--rule", ".*=dense")
    assert run("prune", model, "-o", output, *rules).code == 0
    result, state = load(output), torch_state()
    up, wide = "model.layers.0.up.weight", "model.layers.0.wide.weight"
    assert_same_bits(result[up], pruned(state[up], 1, 4, 1))
    assert_same_bits(result[wide], pruned(state[wide], 2, 4, 0))
    conv = "model.layers.0.conv.weight"
    assert_same_bits(result[conv], state[conv])

    done = run("check", model, "--head", "--json").json
    assert {x["leaf"]: x["plan"] for x in done["leaves"]}["lm_head.weight"] == (
        "2:4 along axis 1"
    )
    small = tmp_path / "small.safetensors"
    safetensors.numpy.save_file({"up.weight": weights((4, 8))}, small)
    assert run("check", small).code == 2
    assert run("check", small, "--any-size").code == 1


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--head", "lm_head.weight"),
        ("--router", "model.layers.0.block_sparse_moe.gate.weight"),
        ("--adapter", "model.layers.0.up.lora_A.default.weight"),
    ],
)
def test_roles_stay_dense_and_the_line_names_the_option(run, tmp_path, option, name):
    state = {name: weights((16, 64)), "model.layers.0.up.weight": weights((64, 64))}
    path, output = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    safetensors.numpy.save_file(state, path)

    done = run("prune", path, "-o", output, "--json")
    leaves = {x["leaf"]: x for x in done.json["leaves"]}
    role = option.removeprefix("--")
    assert leaves[name]["reason"] == f"{role}; give {option}"
    assert_same_bits(load(output)[name], state[name])
    assert run("check", output).code == 0
    assert run("check", output, option).code == 1

    others = {"--head", "--router", "--adapter"} - {option}
    assert run("prune", path, "-o", output, "--force", *others).code == 0
    assert_same_bits(load(output)[name], state[name])
    assert run("prune", path, "-o", output, "--force", option).code == 0
    for tensor, weight in state.items():
        assert_same_bits(load(output)[tensor], pruned(weight, 2, 4, 1))
    assert run("check", output, option).code == 0


def test_compressed_files_are_inspected_but_not_pruned_again(run, tmp_path):
    path = tmp_path / "model.safetensors"
    params = flax_params()
    js.save_sparse(path, js.compress_params(params))
    (leaf,) = (
        x for x in run("inspect", path, "--json").json["leaves"] if x["compressed"]
    )
    assert (leaf["leaf"], leaf["pattern"], leaf["axes"]) == ("up/kernel", "2:4", [0])
    assert run("check", path).code == 0
    done = run("prune", path, "-o", tmp_path / "out.safetensors")
    assert (done.code, "already compressed" in done.err) == (2, True)


def test_check_takes_the_stored_axis_of_what_is_compressed(run, tmp_path):
    path = tmp_path / "model.safetensors"
    weight = jax.numpy.arange(1.0, 257).reshape(16, 16)
    rules = [
        js.Rule("a.b|lm_head/w", "2:4", axis=1, sizes=None),
        js.Rule("x", "1:4", axis=0, sizes=None),
        js.Rule("dense", None),
    ]
    tree = dict.fromkeys(("a.b", "x", "dense"), weight)
    js.save_sparse(
        path, js.compress_params({**tree, "lm_head": {"w": weight[:12]}}, rules)
    )
    done = run("check", path, "--json")  # the names tell nothing
    plans = {leaf["leaf"]: leaf["plan"] for leaf in done.json["leaves"]}
    assert done.code == 0
    assert "ambiguous" in plans.pop("dense")
    along = {"a.b": 1, "x": 0, "lm_head/w": 1}
    assert plans == {name: f"2:4 along axis {axis}" for name, axis in along.items()}

    faults = run("check", path, "--pattern", "1:4", "--json").json["leaves"]
    assert {x["leaf"] for x in faults if x["fault"]} == {"a.b", "lm_head/w"}


@pytest.mark.sweep
def test_quantized_files_are_inspected_and_compared(run, tmp_path):
    params = flax_params()
    small = js.compress_params(params, quantize="int8")
    masked = js.mask_params(params, js.create_masks(params))
    js.save_sparse(tmp_path / "a.safetensors", masked)
    js.save_sparse(tmp_path / "b.safetensors", small)
    leaves = run("inspect", tmp_path / "b.safetensors", "--json").json["leaves"]
    values = {leaf["leaf"]: leaf["values"] for leaf in leaves if leaf["compressed"]}
    assert values == {"up/kernel": "int8"}
    assert "compressed in int8" in run("inspect", tmp_path / "b.safetensors").out
    done = run("compare", tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert done.code == 0
    stored = sum(x.nbytes for x in jax.tree.leaves(small))
    dense = sum(x.nbytes for x in jax.tree.leaves(masked))
    assert f"{stored} of {dense} B in b" in done.out.replace(",", "")


def grouped(n, m, axis):
    """Returns a weight with exactly `n` non-zeros in each group of `m`."""
    line = np.zeros((4, 32), np.float32)
    line.reshape(4, -1, m)[:, :, :n] = np.nan
    return line if axis == 1 else line.T.copy()


def test_inspect_shows_the_sparsest_pattern(run, tmp_path):
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
    report = run("inspect", path, "--json").json["leaves"]
    result = {x["leaf"]: (x["pattern"], x["axes"], x["zeros"]) for x in report}
    assert result["a"] == ("2:4", [1], 64)
    assert result["b"] == ("1:4", [0], 96)
    assert result["c"] == ("5:16", [1], 88)
    assert result["both"] == ("1:4", [0, 1], 768)
    assert result["zero"] == (None, [], 32)
    assert result["dense"] == (None, [], 0)
    assert result["scalar"] == (None, [], 0)
    assert result["ints"] == ("1:2", [0, 1], 2)


def test_compare_reports_tensors_that_are_in_one_file_only(run, tmp_path):
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
    report = run(
        "compare", tmp_path / "c.safetensors", tmp_path / "d.safetensors", "--json"
    ).json
    assert [leaf["error"] for leaf in report["leaves"]] == [0.0, None, None]
    for text in ("only in a", "only in b", "float32[4] / float32[2]", "1 of 4 tensors"):
        assert text in done.out
    assert run("compare", a, a).code == 0


def test_prune_notes_values_that_are_not_finite(run, tmp_path):
    path, output = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    up, bias = weights((16, 16)), weights((16,))
    up[0, :2], up[3, 3], bias[1] = np.inf, np.nan, -np.inf
    state = {"a.weight": weights((16, 16)), "up.bias": bias, "up.weight": up}
    safetensors.numpy.save_file(state, path)
    done = run("prune", path, "-o", output, "--json")
    assert done.code == 0
    assert done.err == (
        "note: 4 values of 2 tensors are NaN or infinite, the first of up.bias: they "
        "rank highest\n"
    )
    kept = load(output)["up.weight"]
    assert np.isinf(kept[0, :2]).all()
    assert np.isnan(kept[3, 3])
    safetensors.numpy.save_file({"a.weight": weights((16, 16))}, path)
    assert run("prune", path, "-o", output, "--force").err == ""


def test_layout_is_required_if_names_do_not_determine_it(run, tmp_path):
    path = tmp_path / "model.safetensors"
    for state in (
        {"w": weights((16, 16))},
        {"a.weight": weights((16, 16)), "b/kernel": weights((16, 16))},
    ):
        safetensors.numpy.save_file(state, path)
        done = run("check", path)
        assert (done.code, str(path) in done.err) == (2, True)
        assert "give --layout torch" in done.err
    assert run("check", path, "--layout", "torch", "--json").json["leaves"][0] == {
        "leaf": "a.weight",
        "plan": "2:4 along axis 1",
        "fault": "'a.weight' of shape (16, 16), 2:4 along axis 1: 64 of 64 groups keep "
        "more than 2; the first, with 4, starts at (0, 0)",
    }


@pytest.mark.parametrize("name", ["float8_e4m3fnuz", "float8_e5m2fnuz"])
def test_eight_bits_without_negative_zero(run, tmp_path, name):
    # No installed package writes these dtypes.
    values = weights((16, 32)).astype(name)
    entry = {
        "dtype": "F" + name[5:].upper(),
        "shape": [16, 32],
        "data_offsets": [0, 512],
    }
    text = json.dumps({"a.weight": entry}).encode()
    path, output = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + values.tobytes())
    assert run("prune", path, "-o", output).code == 0
    assert output.read_bytes()[-512:] == pruned(values, 2, 4, 1).tobytes()
    assert run("check", output).code == 0
