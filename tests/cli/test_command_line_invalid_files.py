"""Invalid files: a one-line error names file and cause; nothing is written."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxsparse._files import safetensors


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run" / "model.safetensors"
    path.parent.mkdir()
    x = np.ones((16, 16), np.float32)
    save_file({"a.weight": x, "b.weight": x}, path)
    return path


def is_refused(run, path, named, words):
    before = {x: x.read_bytes() for x in path.parent.rglob("*") if x.is_file()}
    output = path.with_name("out.safetensors")
    for args in (
        ("inspect", path),
        ("prune", path, "-o", output),
        ("check", path),
        ("compare", path, path),
    ):
        done = run(*args)
        assert (done.code, done.out) == (2, "")
        (line,) = [x for x in done.err.splitlines() if not x.startswith(args[0])]
        assert line.startswith(f"error: {named}: ")
        assert words in line
    after = {x: x.read_bytes() for x in path.parent.rglob("*") if x.is_file()}
    assert after == before


def rewrite(path, change):
    """Writes the file with another header."""
    data = path.read_bytes()
    size = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[size:])


@pytest.mark.parametrize("size", [0, 4, 40, 1000])
def test_truncated_files(run, path, size):
    path.write_bytes(path.read_bytes()[:size])
    is_refused(run, path, path, "bytes")


def test_a_huge_header(run, path):
    path.write_bytes((2**63).to_bytes(8, "little") + path.read_bytes()[8:])
    is_refused(run, path, path, "cannot contain a header of 9223372036854775808")


@pytest.mark.parametrize(
    "data", [b"PK\x03\x04" + bytes(100), b"GGUF" + bytes(4), b"\x02" + bytes(7) + b"[]"]
)
def test_files_that_are_not_safetensors(run, path, data):
    path.write_bytes(data)
    is_refused(run, path, path, "its first bytes are not a safetensors header")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("data_offsets", [4, 1028], "begins at byte"),
        ("data_offsets", [-4, 1020], "not a list of sizes"),
        ("data_offsets", [2**70, 2**70 + 1024], "begins at byte"),
        ("dtype", "F4", "'b.weight' is not valid: jaxsparse cannot read dtype F4"),
        ("dtype", "F64", "1024 bytes for float64"),
        ("shape", [2**30, 2**30], "bytes for float32"),
        ("shape", [2**70, 0], "'b.weight' is not valid: no array can have the shape"),
        ("shape", [2**40, 2**40, 0], "no array can have the shape"),
        ("shape", [1] * 65, "no array can have the shape"),
    ],
)
def test_invalid_headers(run, path, key, value, words):
    rewrite(path, lambda header: header["b.weight"].update({key: value}))
    is_refused(run, path, path, words)


def test_names_with_control_characters_are_escaped(run, path):
    rewrite(path, lambda header: header.update({"\x1b[2J\n": {}}))
    is_refused(run, path, path, r"\x1b[2J\n")


def test_an_index_cannot_name_files_elsewhere(run, path, tmp_path):
    outside = tmp_path / "outside.safetensors"
    shutil.move(path, outside)
    index = path.with_name("model.safetensors.index.json")
    for name in ("../outside.safetensors", str(outside), "sub/x.safetensors", ".."):
        weight_map = {"a.weight": name, "b.weight": name}
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        is_refused(run, index, index, f"there is no file {name!r} beside it")
    index.write_text("{")
    is_refused(run, index, index, "not valid JSON")


def test_a_file_that_changes_while_it_is_read(run, path, monkeypatch):
    from jaxsparse.cli import prune

    def changed(weight, _):
        path.touch()
        return weight

    monkeypatch.setattr(prune, "prune_weight", changed)
    output = path.with_name("out.safetensors")
    done = run("prune", path, "-o", output)
    assert (done.code, output.exists()) == (2, False)
    assert done.err.endswith(f"error: {path}: it has changed since it was opened\n")
    assert len(list(path.parent.iterdir())) == 1


def test_a_file_that_is_replaced_before_it_is_pruned(run, path, monkeypatch):
    from jaxsparse.cli import prune

    plan_leaves = prune.plan_leaves

    def replaced(*args, **options):
        save_file({"c.weight": np.ones((16, 16), np.float32)}, path)
        return plan_leaves(*args, **options)

    monkeypatch.setattr(prune, "plan_leaves", replaced)
    done = run("prune", path, "-o", path.with_name("out.safetensors"))
    assert (done.code, len(list(path.parent.iterdir()))) == (2, 1)
    assert done.err.endswith(f"error: {path}: it has changed since it was opened\n")


def test_a_tensor_that_does_not_fit_in_memory(run, path, monkeypatch):
    def fails(*_, **__):
        raise MemoryError

    numpy = SimpleNamespace(**{**vars(np), "empty": fails})
    monkeypatch.setattr(safetensors, "np", numpy)
    is_refused(
        run, path, path, "too little memory for 'a.weight' of shape (16, 16), 1024 byt"
    )
