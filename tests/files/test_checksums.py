"""Damaged files: every flipped bit is found, and the error names the tensor."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import jaxsparse as js
from tests.files.saved import SPLIT, assert_same, stored, tree


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def crc32(data):
    """CRC-32 bit by bit: the reflected polynomial 0xEDB88320."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0xEDB88320 if value & 1 else 0)
    return f"{value ^ 0xFFFFFFFF:08x}"


def checksums(path):
    with safetensors.safe_open(path, "np") as file:
        return json.loads(file.metadata()["jaxsparse.crc32"])


def flip(path, offset, bit):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def first_byte(path, name):
    """The offset of the first byte of a tensor in its file."""
    data = path.read_bytes()
    size = 8 + int.from_bytes(data[:8], "little")
    return size + json.loads(data[8:size])[name]["data_offsets"][0]


def rewrite_metadata(path, change):
    data = path.read_bytes()
    size = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:size])
    change(header["__metadata__"])
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[size:])


def change_pattern(metadata, pattern):
    entry = json.loads(metadata["jaxsparse"])
    entry["leaves"]["mlp/kernel"]["pattern"] = pattern
    metadata["jaxsparse"] = json.dumps(entry, separators=(",", ":"))


def as_format_1(metadata):
    """What earlier versions wrote."""
    del metadata["jaxsparse.crc32"]
    entry = json.loads(metadata["jaxsparse"])
    metadata["jaxsparse"] = json.dumps(entry | {"format": 1})


def test_every_tensor_has_its_crc32(path):
    js.save_sparse(path, tree())
    tensors = safetensors.numpy.load_file(path)
    sums = checksums(path)
    with safetensors.safe_open(path, "np") as file:
        assert sums.pop("__metadata__") == crc32(file.metadata()["jaxsparse"].encode())
    assert sums == {name: crc32(x.tobytes()) for name, x in tensors.items()}


@pytest.mark.sweep
@pytest.mark.parametrize("how", [{}, SPLIT])
def test_a_flipped_bit_in_any_byte_of_a_tensor_is_found(path, how):
    js.save_sparse(path, tree(), **how)
    for file in path.parent.glob("*.safetensors"):
        whole = file.read_bytes()
        start = 8 + int.from_bytes(whole[:8], "little")
        for offset in range(start, len(whole), 1 if not how else 7):
            flip(file, offset, offset % 8)
            with pytest.raises(js.SparseFileError, match=f"{file.name}: .* checksum"):
                js.load_sparse(path)
            file.write_bytes(whole)
    assert_same(js.load_sparse(path), tree())


@pytest.mark.sweep
def test_every_bit_of_the_indices(path):
    js.save_sparse(path, {"kernel": stored(0, (8, 2))})
    whole, start = path.read_bytes(), first_byte(path, "kernel/indices")
    impossible = 0
    for bit in range(8 * 2):  # two codes of four bits for each output
        flip(path, start + bit // 8, bit % 8)
        with pytest.raises(js.SparseFileError, match=r"'kernel/indices'.*checksum"):
            js.load_sparse(path)
        # Without the checksum, only what has no meaning is refused.
        code = whole[start + bit // 8] >> bit % 8 // 4 * 4 & 15 ^ 1 << bit % 4
        if not code & 3 < code >> 2:
            impossible += 1
            words = r"'kernel' of shape \(8, 2\), 2:4 along axis 0: 1 of 4 groups have"
            with pytest.raises(js.SparseFileError, match=words):
                js.load_sparse(path, verify=False)
        else:
            loaded = js.load_sparse(path, verify=False)["kernel"]
            js.check_sparsity(
                {"kernel": loaded}, [js.Rule(".*", "2:4", axis=0, sizes=None)]
            )
            assert not np.array_equal(loaded.indices, stored(0, (8, 2)).indices)
        path.write_bytes(whole)
    assert 0 < impossible < 16


def test_leaves_that_are_whole_can_be_read(path):
    js.save_sparse(path, tree())
    flip(path, first_byte(path, "mlp/bias") + 2, 4)
    leaves = js.open_sparse(path)
    assert_same(leaves["mlp/kernel"], tree()["mlp"]["kernel"])
    with pytest.raises(js.SparseFileError, match=r"'mlp/bias'.*verify=False loads it"):
        leaves["mlp/bias"]
    damaged = js.open_sparse(path, verify=False)["mlp/bias"]
    assert damaged[0] == np.array([1 << 20], np.uint32).view(np.float32)[0]
    assert_same(js.open_tensors(path, verify=False)["mlp/bias"], damaged)
    with pytest.raises(js.SparseFileError, match="'mlp/bias'"):
        js.open_tensors(path)["mlp/bias"]


def test_files_in_the_layout_of_pytorch(path):
    params = {"up": {"kernel": jnp.arange(128.0).reshape(16, 8)}}
    js.save_torch(path, js.compress_params(params))
    assert js.open_torch(path)["up/kernel"].shape == (16, 8)
    flip(path, first_byte(path, "up.weight/values"), 0)
    with pytest.raises(js.SparseFileError, match=r"'up\.weight/values'"):
        js.open_torch(path)["up/kernel"]
    assert js.open_torch(path, verify=False)["up/kernel"].shape == (16, 8)


@pytest.mark.parametrize(("before", "after"), [("2:4", "4:8"), ("4:8", "8:16")])
def test_a_pattern_of_the_same_sizes_is_refused(path, before, after):
    n, m = map(int, before.split(":"))
    js.save_sparse(path, {"mlp": {"kernel": stored(0, (32, 8), n=n, m=m)}})
    rewrite_metadata(path, lambda metadata: change_pattern(metadata, after))
    with pytest.raises(js.SparseFileError, match="metadata do not match their check"):
        js.load_sparse(path)
    # Without checksums, as in files of earlier versions, the codes tell.
    if before == "2:4":
        with pytest.raises(js.SparseFileError, match=r"'mlp/kernel'.*4:8.*groups have"):
            js.load_sparse(path, verify=False)
        rewrite_metadata(path, as_format_1)
        with pytest.raises(js.SparseFileError, match=r"'mlp/kernel'.*4:8.*groups have"):
            js.load_sparse(path)


def test_files_of_earlier_versions_are_loaded(path):
    js.save_sparse(path, tree())
    rewrite_metadata(path, as_format_1)
    assert_same(js.load_sparse(path), tree())
    flip(path, first_byte(path, "mlp/bias"), 0)  # nothing can tell
    assert js.load_sparse(path)["mlp"]["bias"].shape == (3,)


@pytest.mark.parametrize(
    "change",
    [
        lambda sums: sums.pop("step"),
        lambda sums: sums.pop("__metadata__"),
        lambda sums: sums.update(other="00000000"),
        lambda sums: sums.update(step=0),
        lambda sums: sums.update(step=sums["step"].upper() + " "),
        lambda sums: sums.clear(),
    ],
)
def test_checksums_of_other_tensors(path, change):
    def change_entry(metadata):
        sums = json.loads(metadata["jaxsparse.crc32"])
        change(sums)
        metadata["jaxsparse.crc32"] = json.dumps(sums)

    js.save_sparse(path, tree())
    rewrite_metadata(path, change_entry)
    with pytest.raises(js.SparseFileError, match="checksum"):
        js.load_sparse(path)


def test_checksums_that_are_missing(path):
    js.save_sparse(path, tree())
    rewrite_metadata(path, lambda metadata: metadata.pop("jaxsparse.crc32"))
    with pytest.raises(js.SparseFileError, match="have no checksums"):
        js.load_sparse(path)


@pytest.mark.parametrize(
    "leaf",
    [
        jax.ShapeDtypeStruct((4, 2), jnp.float32),
        jax.eval_shape(lambda: stored(0)),
        jax.core.ShapedArray((4, 2), jnp.float32),
    ],
)
def test_abstract_leaves_are_named(path, leaf):
    with pytest.raises(TypeError, match=r"leaf 'a/b' of shape .* without values"):
        js.save_sparse(path, {"a": {"b": leaf}})
    with pytest.raises(TypeError, match=r"leaf 'a' of shape \(3,\) is a .*Tracer"):
        jax.jit(lambda x: js.save_sparse(path, {"a": x}))(jnp.ones(3))
    assert not list(path.parent.iterdir())
