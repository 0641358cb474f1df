"""The paths that `prune` reads and writes: several files, links, existing files."""

import json

import pytest
import safetensors.numpy

from tests.cli.command import pruned, torch_state
from tests.compressed.layout_oracle import assert_same_bits


def write_several(folder, stem="model"):
    """Writes one file per tensor and their index; returns the index."""
    state, weight_map = torch_state(), {}
    for i, (name, weight) in enumerate(state.items(), 1):
        weight_map[name] = f"{stem}-{i:05}-of-{len(state):05}.safetensors"
        safetensors.numpy.save_file({name: weight}, folder / weight_map[name])
    index = folder / "model.safetensors.index.json"
    metadata = {"total_size": 7, "total_parameters": 8192}
    index.write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))
    return index


def contents(folder):
    return {x.name: x.read_bytes() for x in folder.iterdir()}


def test_nothing_is_replaced_without_force(run, model, tmp_path):
    output = tmp_path / "out.safetensors"
    output.write_bytes(b"mine")
    done = run("prune", model, "-o", output)
    assert (done.code, output.read_bytes()) == (2, b"mine")
    assert f"{output} already exists: give --force" in done.err
    assert run("prune", model, "-o", output, "--force").code == 0
    assert run("check", output).code == 0
    before = model.read_bytes()
    assert run("prune", model, "-o", model, "--force").code == 2
    assert model.read_bytes() == before


def test_several_files_become_several_files(run, tmp_path):
    state, index = torch_state(), write_several(tmp_path)
    output = tmp_path / "out.safetensors.index.json"
    assert run("prune", index, "-o", output).code == 0
    index_json = json.loads(output.read_text())
    assert index_json["weight_map"].keys() == state.keys()
    assert len(set(index_json["weight_map"].values())) == len(state)
    size = sum(x.nbytes for x in state.values())
    assert index_json["metadata"] == {"total_size": size, "total_parameters": 8192}
    name = "model.layers.0.up.weight"
    file = tmp_path / index_json["weight_map"][name]
    result = safetensors.numpy.load_file(file)[name]
    assert_same_bits(result, pruned(state[name], 2, 4, 1))
    assert run("check", output).code == 0
    assert run("prune", index, "-o", output).code == 2


def test_a_cache_of_links_is_read(run, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "revision"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    write_several(blobs)
    for i, file in enumerate(sorted(blobs.iterdir())):
        file.rename(blobs / str(i))
        (snapshot / file.name).symlink_to(f"../../blobs/{i}")
    before, output = contents(blobs), tmp_path / "out.safetensors"
    index = snapshot / "model.safetensors.index.json"
    assert run("prune", index, "-o", output).code == 0
    assert run("check", output).code == 0
    assert contents(blobs) == before
    # A link to an input cannot be OUT either.
    (shard, *_) = blobs.iterdir()
    output.with_name("link.safetensors").symlink_to(shard)
    done = run("prune", index, "-o", output.with_name("link.safetensors"), "--force")
    assert (done.code, "is part of the input" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("stem", "output"),
    [
        ("model", "model-00002-of-00007.safetensors"),
        ("model", "model.safetensors"),
        ("out-0123abcd", "out.safetensors"),  # looks like a file of an earlier prune
    ],
)
def test_no_input_file_is_replaced_or_removed(run, tmp_path, stem, output):
    index = write_several(tmp_path, stem)
    before = contents(tmp_path)
    done = run("prune", index, "-o", tmp_path / output, "--force")
    assert (done.code, contents(tmp_path)) == (2, before)
    assert "is part of the input: give another output" in done.err


def test_an_index_is_preferred_to_the_file_beside_it(run, tmp_path, model):
    index = write_several(tmp_path)
    assert run("inspect", index).err == ""
    note = f"note: reading {index}, not the file {model} beside it\n"
    assert run("inspect", model).err == note


def test_a_folder_is_not_replaced_by_an_index(run, tmp_path, model):
    output = tmp_path / "out.safetensors"
    folder = tmp_path / "out.safetensors.index.json"
    folder.mkdir()
    done = run("prune", model, "-o", output, "--force")
    assert (done.code, output.exists()) == (2, False)
    assert f"{folder} is not the same kind of file as {model}: remove it" in done.err


def test_a_file_without_tensors_is_refused(run, tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({}, path)
    done = run("prune", path, "-o", tmp_path / "o.safetensors", "--layout", "torch")
    assert (done.code, done.err) == (2, f"error: {path} has no tensors\n")
    done = run("check", path, "--layout", "torch", "--rule", ".*=1:4")
    assert (done.code, "matches none of the 0 tensors" in done.err) == (2, True)
