"""Files in other formats: the error has three lines of Python that convert them."""

import equinox as eqx
import flax.serialization
import jax
import numpy as np
import pytest

import jaxsparse as js


def code_of(error, path):
    """Returns the code in the error of a file."""
    first, *lines = error.splitlines()
    assert first.startswith(
        f"error: {path} must end in .safetensors. Convert a file of"
    )
    assert len(lines) == 3
    assert all(line.startswith("  ") for line in lines)
    code = "\n".join(line[2:] for line in lines)
    compile(code, "code", "exec")
    assert repr(str(path.with_suffix(".safetensors"))) in code
    return code


@pytest.mark.parametrize("name", ["m.pt", "m.pth", "m.bin", "m.onnx", "m'{}.msgpack"])
def test_every_command_says_how_to_convert(run, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"PK\x03\x04")
    for args in (
        ("inspect", path),
        ("prune", path, "-o", tmp_path / "out.safetensors"),
        ("check", path),
        ("compare", path, path),
    ):
        done = run(*args)
        assert (done.code, done.out) == (2, "")
        code_of(done.err, path)


def test_a_file_of_flax_is_converted(run, tmp_path):
    path = tmp_path / "flax_model.msgpack"
    kernel = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    data = flax.serialization.to_bytes({"up": {"kernel": kernel}})
    path.write_bytes(data)
    exec(code_of(run("inspect", path).err, path), {})
    result = js.load_sparse(tmp_path / "flax_model.safetensors")
    np.testing.assert_array_equal(result["up"]["kernel"], kernel)
    assert run("check", tmp_path / "flax_model.safetensors").code == 1


def test_a_file_of_equinox_is_converted(run, tmp_path):
    path, model = tmp_path / "model.eqx", eqx.nn.Linear(16, 8, key=jax.random.key(0))
    eqx.tree_serialise_leaves(path, model)
    like = eqx.nn.Linear(16, 8, key=jax.random.key(1))
    exec(code_of(run("inspect", path).err, path), {"like": like})
    result = js.load_sparse(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(result["weight"], model.weight)
    assert run("check", tmp_path / "model.safetensors").code == 1
