"""The command `compress`: the tensors that it writes are those of plain NumPy."""

import json

import numpy as np
import pytest
import safetensors
import safetensors.numpy

import jaxsparse as js
from tests.cli.command import pruned, torch_state, weights
from tests.cli.test_command_line_paths import contents
from tests.compressed.layout_oracle import assert_same_bits, compressed


UP = "model.layers.0.up.weight"
PLANNED = {UP, "model.layers.0.conv.weight", "model.layers.0.wide.weight"}


def sparse_state():
    return {
        name: pruned(weight, 2, 4, 1) if name in PLANNED else weight
        for name, weight in torch_state().items()
    }


@pytest.fixture
def sparse(tmp_path):
    path = tmp_path / "sparse.safetensors"
    safetensors.numpy.save_file(sparse_state(), path, {"format": "pt", "own": "1"})
    return path


def test_tensors_are_stored_without_their_zeros(run, sparse, tmp_path):
    path = tmp_path / "small.safetensors"
    done = run("compress", sparse, "-o", path)
    assert done.code == 0
    assert f"wrote {path}" in done.out
    small, state = safetensors.numpy.load_file(path), sparse_state()
    for name in PLANNED:
        weight = state.pop(name)
        values, indices = compressed(weight, weight != 0, 2, 4, 1)
        assert_same_bits(small.pop(f"{name}/values"), values)
        assert_same_bits(small.pop(f"{name}/indices"), indices)
    assert small.keys() == state.keys()
    for name, weight in state.items():
        assert_same_bits(small[name], weight)
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["own"]) == ("pt", "1")
    assert run("check", path).code == 0
    assert run("compare", sparse, path).code == 0
    kernel = js.open_torch(path)["model/layers/0/up/kernel"]
    assert_same_bits(np.asarray(js.decompress(kernel)), sparse_state()[UP].T)


@pytest.mark.parametrize(
    ("dtype", "largest", "half"), [("int8", 127, 0.5), ("float8_e4m3fn", 448, 16)]
)
def test_values_in_eight_bits_have_a_scale_for_each_output(
    run, tmp_path, dtype, largest, half
):
    weight = pruned(weights((32, 64)), 2, 4, 1)
    safetensors.numpy.save_file({"up.weight": weight}, tmp_path / "a.safetensors")
    path = tmp_path / "b.safetensors"
    done = run("compress", tmp_path / "a.safetensors", "-o", path, "--quantize", dtype)
    assert done.code == 0
    assert f"in {dtype}" in done.out
    small = js.open_tensors(path)["up.weight"]
    scales = np.abs(weight).max(1, keepdims=True) / largest
    np.testing.assert_allclose(small.scales, scales, rtol=1e-6)
    assert small.values.dtype.name == dtype
    difference = np.abs(np.asarray(js.decompress(small)) - weight)
    assert (difference <= scales * half * 1.001).all()  # half of the largest step


def test_names_without_a_meaning_need_a_rule(run, tmp_path):
    weight = pruned(weights((16, 32)), 1, 4, 0)
    safetensors.numpy.save_file({"x": weight}, tmp_path / "a.safetensors")
    path = tmp_path / "b.safetensors"
    args = ("compress", tmp_path / "a.safetensors", "-o", path, "--json")
    assert run(*args).code == 2
    done = run(*args, "--layout", "flax", "--rule", "x=1:4@0")
    (leaf,) = done.json["leaves"]
    assert (leaf["pattern"], leaf["axis"], leaf["compressed"]) == ("1:4", 0, True)
    values, indices = compressed(weight, weight != 0, 1, 4, 0)
    assert leaf["bytes"] == values.nbytes + indices.nbytes
    assert leaf["dense_bytes"] == weight.nbytes
    assert_same_bits(np.asarray(js.load_sparse(path)["x"].values), values)


def test_other_groups_keep_their_zeros(run, tmp_path):
    weight = pruned(weights((16, 32)), 1, 2, 1)
    safetensors.numpy.save_file({"up.weight": weight}, tmp_path / "a.safetensors")
    path = tmp_path / "b.safetensors"
    args = ("compress", tmp_path / "a.safetensors", "-o", path)
    done = run(*args, "--pattern", "1:2")
    assert done.code == 0
    assert "with its zeros: 1:2 is not in groups of 4, 8 or 16" in done.out
    assert_same_bits(safetensors.numpy.load_file(path)["up.weight"], weight)


def test_a_folder_becomes_a_file(run, sparse, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    sparse.rename(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    path = tmp_path / "small.safetensors"
    assert run("compress", folder, "-o", path).code == 0
    assert run("check", path).code == 0


def test_what_is_refused_leaves_nothing(run, sparse, model, tmp_path):
    before = contents(tmp_path)
    for path, words in {
        model: "of shape (32, 64), 2:4 along axis 1: 512 of 512 groups keep more",
        sparse: "is part of the input",
    }.items():
        output = sparse if path == sparse else tmp_path / "out.safetensors"
        done = run("compress", path, "-o", output, "--force")
        assert done.code == 2
        assert words in done.err
    assert contents(tmp_path) == before
    small = tmp_path / "small.safetensors"
    assert run("compress", sparse, "-o", small).code == 0
    done = run("compress", sparse, "-o", small)
    assert (done.code, "give --force" in done.err) == (2, True)
    assert run("compress", sparse, "-o", small, "--force").code == 0
    done = run("compress", small, "-o", tmp_path / "again.safetensors")
    assert (done.code, "already compressed" in done.err) == (2, True)
