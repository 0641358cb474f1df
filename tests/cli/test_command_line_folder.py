"""Folders of Hugging Face models: read as they are, written whole."""

import json
from pathlib import Path, PurePath

import numpy as np
import pytest
import safetensors.numpy

from jaxsparse._files.model_folder import is_other_format
from tests.cli.command import pruned, torch_state
from tests.cli.test_command_line_paths import contents, write_several
from tests.compressed.layout_oracle import assert_same_bits


OTHERS = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer.model": b"sentencepiece",
    "training_args.bin": b"pickle",
    "README.md": b"---",
    "2_Dense/model.safetensors": b"of another module",
    "2_Dense/config.json": b"{}",
}
OTHER_FORMATS = {
    "pytorch_model.bin": b"pickle",
    "pytorch_model-00001-of-00002.bin": b"pickle",
    "pytorch_model.bin.index.json": b"{}",
    "tf_model.h5": b"hdf",
    "flax_model.msgpack": b"flax",
    "model.fp16.safetensors": b"half",
    "onnx/model.onnx": b"onnx",
    "original/consolidated.00.pth": b"pickle",
}


def write(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(params=["one file", "several files"])
def folder(request, tmp_path):
    folder = tmp_path / "model"
    write(folder, OTHERS | OTHER_FORMATS)
    if request.param == "one file":
        metadata = {"format": "pt"}
        path = folder / "model.safetensors"
        safetensors.numpy.save_file(torch_state(), path, metadata=metadata)
    else:
        write_several(folder)
    return folder


def weights_in(folder):
    """Returns the tensors that loaders find: of the index, or of the only file."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.exists():
        names = json.loads(index.read_text())["weight_map"].values()
    return {
        name: weight
        for file in set(names)
        for name, weight in safetensors.numpy.load_file(folder / file).items()
    }


def test_a_folder_becomes_a_folder_that_loads(run, folder, tmp_path):
    before, output = files(folder), tmp_path / "out"
    done = run("prune", folder, "-o", output)
    assert (done.code, done.err) == (0, "")
    assert files(folder) == before
    after = files(output)
    assert after.keys() == before.keys() - OTHER_FORMATS.keys()
    assert {name: after[name] for name in OTHERS} == OTHERS
    if (index := "model.safetensors.index.json") in before:
        assert after[index] == before[index]
    sparse = {f"model.layers.0.{x}.weight" for x in ("up", "conv", "wide")}
    result, state = weights_in(output), torch_state()
    assert result.keys() == state.keys()
    for name, weight in state.items():
        expected = pruned(weight, 2, 4, 1) if name in sparse else weight
        assert_same_bits(result[name], expected)
    assert f"wrote {output}\n" in done.out
    assert done.out.endswith(
        "not copied, because only safetensors are pruned: "
        f"{', '.join(sorted(OTHER_FORMATS))}\n"
    )
    assert {x.name for x in tmp_path.iterdir()} == {"model", "out"}
    assert (run("check", output).code, run("check", folder).code) == (0, 1)
    assert run("compare", folder, output).code == 0


def test_a_folder_is_replaced_only_by_force(run, folder, tmp_path):
    output = tmp_path / "out"
    write(output, {"mine": b"1"})
    before = files(output)
    assert run("prune", folder, "-o", output).code == 2
    assert run("prune", folder, "-o", output, "--force").code == 2  # not a model
    assert run("prune", folder, "-o", folder, "--force").code == 2
    assert run("prune", folder, "-o", folder / "out").code == 2
    assert run("prune", folder, "-o", tmp_path / "out.safetensors").code == 2
    assert files(output) == before
    write(output, {"model.safetensors": b"", "config.json": b"{}"})
    assert run("prune", folder, "-o", output, "--force").code == 0
    assert "mine" not in files(output)
    assert run("check", output).code == 0
    assert {x.name for x in tmp_path.iterdir()} == {"model", "out"}


def test_an_interrupt_leaves_no_folder(run, folder, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxsparse.cli.prune.prune_weight", interrupted)
    assert run("prune", folder, "-o", tmp_path / "out").code == 130
    assert {x.name for x in tmp_path.iterdir()} == {"model"}


def test_what_a_killed_command_left_is_removed(run, folder, tmp_path):
    write(tmp_path / "out.0123abcd.tmp", {"model.safetensors": b"half"})
    write(tmp_path / "other.0123abcd.tmp", {"mine": b""})
    assert run("prune", folder, "-o", tmp_path / "out").code == 0
    assert {x.name for x in tmp_path.iterdir()} == {
        "model",
        "out",
        "other.0123abcd.tmp",
    }


def test_a_snapshot_of_links_becomes_a_folder_of_files(run, folder, tmp_path):
    snapshot, output = tmp_path / "snapshot", tmp_path / "out"
    snapshot.mkdir()
    for path in filter(Path.is_file, folder.rglob("*")):
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(path)
    assert run("prune", snapshot, "-o", output).code == 0
    assert not any(path.is_symlink() for path in output.rglob("*"))
    assert files(output).keys() == files(folder).keys() - OTHER_FORMATS.keys()


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_paths_that_are_reported_exist(run, folder, tmp_path, options):
    inputs = [folder]
    if (index := folder / "model.safetensors.index.json").exists():
        inputs.append(index)
    for path in inputs:
        output = tmp_path / ("out" if path == folder else "out.safetensors")
        report = run("prune", path, "-o", output, "--json", *options).json
        assert report["file"] == str(path)
        assert report["not_copied"] == (sorted(OTHER_FORMATS) if path == folder else [])
        if options:
            assert (report["output"], output.exists()) == (None, False)
        elif path == index:
            assert report["output"] == str(tmp_path / "out.safetensors.index.json")
            assert Path(report["output"]).is_file()
        else:
            assert (report["output"], output.is_dir()) == (str(output), True)
    # Without the end of its name, the index is meant too.
    if index in inputs:
        path = folder / "model.safetensors"
        assert run("inspect", path, "--json").json["file"] == str(index)


@pytest.mark.parametrize(
    ("name", "is_left_out"),
    [
        *((name, False) for name in OTHERS),
        *((name, True) for name in OTHER_FORMATS),
        ("model.safetensors", False),
        ("model-00001-of-00002.safetensors", False),
        ("pytorch_model.pt", True),
        ("openvino/openvino_model.bin", True),
        ("optimizer.pt", False),
        ("rng_state.pth", False),
        ("model.py", False),
        ("modeling_llama.py", False),
        ("model_index.json", False),
        ("1_Pooling/config.json", False),
        ("2_Dense/pytorch_model.bin", False),
    ],
)
def test_which_files_are_weights_in_other_formats(name, is_left_out):
    weights = ("model.safetensors", "model-00001-of-00002.safetensors")
    assert is_other_format(PurePath(name), weights) == is_left_out


def test_what_tools_keep_in_a_folder_is_not_copied(run, folder, tmp_path):
    write(folder, {".git/config": b"", ".cache/huggingface/x.lock": b""})
    report = run("prune", folder, "-o", tmp_path / "out", "--json").json
    assert report["not_copied"] == sorted([".cache/", ".git/", *OTHER_FORMATS])
    assert files(tmp_path / "out").keys() == files(folder).keys() - {
        *OTHER_FORMATS,
        ".git/config",
        ".cache/huggingface/x.lock",
    }


def test_a_folder_without_safetensors_says_what_to_do(run, tmp_path):
    write(tmp_path, {"config.json": b"{}", "training_args.bin": b"x"})
    done = run("inspect", tmp_path)
    assert (done.code, "it has no model.safetensors" in done.err) == (2, True)
    write(tmp_path, {"pytorch_model.bin": b"x"})
    done = run("inspect", tmp_path)
    assert (done.code, "safetensors.torch.save_file(" in done.err) == (2, True)


def test_other_names_of_weights(run, tmp_path):
    weight = {"up.weight": np.ones((16, 16), np.float32)}
    safetensors.numpy.save_file(weight, tmp_path / "b.safetensors")
    assert run("inspect", tmp_path).code == 0
    safetensors.numpy.save_file(weight, tmp_path / "a.safetensors")
    assert run("inspect", tmp_path).code == 2  # which?
    safetensors.numpy.save_file(
        {"down.weight": np.ones((4, 4), np.float32)},
        tmp_path / "diffusion_pytorch_model.safetensors",
    )
    assert "down.weight" in run("inspect", tmp_path).out
    assert contents(tmp_path).keys() == {
        "a.safetensors",
        "b.safetensors",
        "diffusion_pytorch_model.safetensors",
    }
