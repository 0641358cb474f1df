"""Invalid files: the error names the file, and nothing is loaded."""

import json
import shutil

import pytest

import jaxsparse as js
from tests.files.saved import SPLIT, assert_same, tree


@pytest.fixture
def path(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "model.safetensors"


def refused(path):
    with pytest.raises(js.SparseFileError) as error:
        js.load_sparse(path)
    return str(error.value)


def test_every_truncation_is_refused(path):
    js.save_sparse(path, tree())
    whole = path.read_bytes()
    for size in [*range(0, 40), *range(40, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:size])
        assert str(path) in refused(path)
    path.write_bytes(whole + b"\0")
    assert "its header describes" in refused(path)


@pytest.mark.sweep(full=["how1"])
@pytest.mark.parametrize(("how", "step"), [({}, 1), (SPLIT, 5)])
def test_a_bit_flip_anywhere_in_header_or_index_is_refused(path, how, step):
    js.save_sparse(path, tree(), **how)
    index = path.with_name(f"{path.name}.index.json")
    for file in path.parent.iterdir():
        whole = file.read_bytes()
        size = 8 + int.from_bytes(whole[:8], "little")
        for offset in range(0, len(whole) if file == index else size, step):
            flipped = bytearray(whole)
            flipped[offset] ^= 1 << (offset * 7 + offset // 8) % 8
            file.write_bytes(flipped)
            refused(path)
        file.write_bytes(whole)
    assert_same(js.load_sparse(path), tree())


def rewrite(path, change):
    """Rewrites the file with another header."""
    data = path.read_bytes()
    size = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:size])
    text = change(header) or json.dumps(header)
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + data[size:])


def set_in(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(header):
        for key in keys:
            header = header[key]
        header[last] = value

    return change


def change_metadata(path, leaf, **changes):
    """Changes the metadata of a leaf."""

    def change(header):
        metadata = json.loads(header["__metadata__"]["jaxsparse"])
        metadata["leaves"][leaf].update(changes)
        header["__metadata__"]["jaxsparse"] = json.dumps(metadata)

    rewrite(path, change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_in("step", "dtype", "F32"), "'step'"),
        (set_in("step", "dtype", "F7"), "'step'"),
        (set_in("step", "shape", [2]), "'step' is not valid"),
        (set_in("step", "shape", [-1]), "sizes"),
        (set_in("step", "shape", [True]), "sizes"),
        (set_in("step", "shape", None), "sizes"),
        (set_in("step", "data_offsets", [0, 4]), "begins at"),
        (set_in("mlp/bias", "shape", [2**62, 4]), "not valid"),
        (set_in("step", "more", 1), "keys"),
        (set_in("step", 7), "'step'"),
        (set_in("__metadata__", {"jaxsparse": 1}), "map of strings"),
        (set_in("__metadata__", {}), "save_sparse did not write it"),
        (set_in("__metadata__", "jaxsparse", "[]"), "not an object"),
        (set_in("__metadata__", "jaxsparse", '{"format":3,"leaves":{}}'), "format 1"),
        (set_in("__metadata__", "jaxsparse", '{"format":1,"leaves":[]}'), "valid"),
        (lambda header: header.pop("step") and None, "begins at|describes"),
        (set_in("__metadata__", "jaxsparse", '"\ud800"'), "not an object"),
        (lambda _: '{"a":' + "[" * 100_000, "valid JSON"),
        (lambda _: "[" * 100_000, "first bytes are not a safetensors header"),
        (lambda _: '{"a":1,"a":2}', "duplicate key"),
    ],
)
def test_invalid_headers(path, change, words):
    js.save_sparse(path, tree())
    rewrite(path, change)
    with pytest.raises(js.SparseFileError, match=words):
        js.load_sparse(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"pattern": "1:4"},
        {"pattern": "2:8"},
        {"pattern": "1:2"},
        {"pattern": 3},
        {"axis": -1},
        {"axis": 0},
        {"axis": -3},
        {"axis": "-2"},
        {"shape": [8, 16]},
        {"dtype": "bfloat16"},
        {"dtype": "float31"},
        {"dtype": "f4,f4"},
        {"dtype": None},
        {"dtype": ["float32"]},
        {"more": 1},
    ],
)
def test_metadata_that_do_not_match_the_tensors(path, changes):
    js.save_sparse(path, tree())
    change_metadata(path, "mlp/kernel", **changes)
    refused(path)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 200_000_000])
def test_a_huge_header_length(path, length):
    js.save_sparse(path, tree())
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    assert "cannot contain a header" in refused(path)


def test_an_index_cannot_name_files_elsewhere(path, tmp_path):
    js.save_sparse(path, tree(), **SPLIT)
    index = path.with_name(f"{path.name}.index.json")
    whole = json.loads(index.read_text())
    name = whole["weight_map"]["step"]
    outside = tmp_path / "outside.safetensors"
    shutil.copy(path.with_name(name), outside)
    (path.parent / "sub").mkdir()
    shutil.copy(outside, path.parent / "sub" / "in.safetensors")
    (path.parent / "link.safetensors").symlink_to(outside)
    (path.parent / "folder.safetensors").mkdir()
    for trick in (
        str(outside),
        "../outside.safetensors",
        "sub/in.safetensors",
        "sub/../../outside.safetensors",
        "./link.safetensors",
        "folder.safetensors",
        "none.safetensors",
        f"{name}\0",
        "\0.safetensors",
        "x" * 5000 + ".safetensors",
        "\ud800.safetensors",
        "..",
        "",
        5,
        [name],
    ):
        whole["weight_map"]["step"] = trick
        index.write_text(json.dumps(whole))
        assert str(index) in refused(path)
    # Saving does not remove files of others.
    js.save_sparse(path, tree(3))
    left = {file.name for file in path.parent.iterdir()}
    assert left == {path.name, "sub", "link.safetensors", "folder.safetensors"}
    assert outside.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index["weight_map"].pop("step"),
        lambda index: index["weight_map"].update(new=index["weight_map"]["step"]),
        lambda index: index["weight_map"].update(step=index["weight_map"]["mlp/bias"]),
        lambda index: index["metadata"].update(total_size=1),
        lambda index: index["metadata"].pop("total_size"),
        lambda index: index.update(metadata=[]),
        lambda index: index.pop("weight_map"),
        lambda index: index["weight_map"].clear(),
    ],
)
def test_an_index_that_does_not_match_the_files(path, change):
    js.save_sparse(path, tree(), **SPLIT)
    index = path.with_name(f"{path.name}.index.json")
    contents = json.loads(index.read_text())
    change(contents)
    index.write_text(json.dumps(contents))
    refused(path)


def test_a_file_replaced_by_a_copy_of_another(path):
    js.save_sparse(path, tree(), **SPLIT)
    index = json.loads(path.with_name(f"{path.name}.index.json").read_text())
    one, other = (path.with_name(index["weight_map"][x]) for x in ("step", "mlp/bias"))
    shutil.copy(one, other)
    assert "also in another file" in refused(path)
