"""Saving and loading trees; saves are atomic."""

import json
import os
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import jaxsparse as js
from tests.compressed.layout_oracle import assert_same_bits
from tests.files.saved import SPLIT, assert_same, stored, tree


@pytest.fixture
def path(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "model.safetensors"


@pytest.mark.parametrize("how", [{}, SPLIT, {"max_file_bytes": 330}])
def test_saved_trees_are_loaded(path, how):
    js.save_sparse(path, tree(), **how)
    assert_same(js.load_sparse(str(path)), tree())
    names = sorted(file.name for file in path.parent.iterdir())
    count = {(): 1, (1,): 5, (330,): 3}[tuple(how.values())]
    assert len(names) == count
    assert (names == ["model.safetensors"]) == (not how)


def test_a_file_has_its_leaves_and_a_header_only(path):
    params = {"kernel": jnp.ones((64, 32), jnp.bfloat16)}
    js.save_sparse(path, js.compress_params(params))
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    assert len(data) - header == params["kernel"].nbytes * 9 / 16


def test_the_package_of_safetensors_reads_the_files(path):
    expected = tree()
    js.save_sparse(path, expected)
    result = safetensors.numpy.load_file(path)
    assert_same_bits(result["mlp/bias"], np.asarray(expected["mlp"]["bias"]))
    assert_same_bits(result["step"], np.asarray(expected["step"]))
    for name in ("mlp", "head"):
        leaf = expected[name]["kernel"]
        assert_same_bits(result[f"{name}/kernel/values"], np.asarray(leaf.values))
        assert_same_bits(result[f"{name}/kernel/indices"], np.asarray(leaf.indices))
    with safetensors.safe_open(path, "np") as file:
        metadata = json.loads(file.metadata()["jaxsparse"])["leaves"]
    assert metadata["head/kernel"] == {
        "dtype": "bfloat16",
        "shape": [2, 32],
        "pattern": "4:8",
        "axis": -1,
    }


def test_the_index_is_that_of_hugging_face(path):
    js.save_sparse(path, tree(), **SPLIT)
    index = json.loads(path.with_name("model.safetensors.index.json").read_text())
    sizes = {}
    for tensor, name in index["weight_map"].items():
        assert name.endswith("-of-00004.safetensors")
        sizes[tensor] = safetensors.numpy.load_file(path.with_name(name))[tensor].nbytes
    assert len(sizes) == 6
    assert index["metadata"]["total_size"] == sum(sizes.values())


@pytest.mark.parametrize(
    "dtype",
    ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8", "uint16", "bool"],
)
def test_dtypes(path, dtype):
    rng = np.random.default_rng(0)
    leaf = jnp.asarray(3 * rng.normal(size=(3, 5))).astype(dtype)
    expected = {"a": leaf, "empty": leaf[:0], "b": leaf.T}
    js.save_sparse(path, expected)
    assert_same(js.load_sparse(path), expected)


def test_64_bits_are_not_narrowed_silently(path):
    js.save_sparse(path, {"a": np.arange(3.0)})
    with pytest.raises(js.SparseFileError, match="'a' has dtype float64: enable jax"):
        js.load_sparse(path)
    with jax.enable_x64(True):
        assert_same_bits(js.load_sparse(path)["a"], np.arange(3.0))


def test_leaves_are_read_one_by_one(path):
    js.save_sparse(path, tree(), **SPLIT)
    leaves = js.open_sparse(path)
    assert sorted(leaves) == ["head/kernel", "mlp/bias", "mlp/kernel", "step"]
    assert leaves.specs["mlp/kernel"].shape == (16, 8)
    index = json.loads(path.with_name(f"{path.name}.index.json").read_text())
    kept = index["weight_map"]["mlp/bias"]
    for name in set(index["weight_map"].values()) - {kept}:
        path.with_name(name).unlink()
    np.testing.assert_array_equal(leaves["mlp/bias"], np.arange(3.0))
    with pytest.raises(js.SparseFileError, match="No such file"):
        leaves["step"]


def test_a_file_that_changed_is_not_read(path):
    js.save_sparse(path, tree())
    leaves = js.open_sparse(path)
    js.save_sparse(path, tree(1))
    with pytest.raises(js.SparseFileError, match="has changed since"):
        leaves["step"]


class Model(eqx.Module):
    layers: list
    step: jax.Array


def test_loading_into_the_structure_of_another_tree(path):
    model = Model([stored(0), jnp.ones(3)], jnp.int32(4))
    js.save_sparse(path, model)
    assert_same(js.load_sparse(path, like=model), model)
    shapes = jax.eval_shape(lambda: model)
    assert_same(js.load_sparse(path, like=shapes), model)
    dense = jax.eval_shape(js.decompress_params, model)
    assert_same(js.load_sparse(path, like=dense), model)
    assert_same(js.load_sparse(path)["layers"]["1"], model.layers[1])


def test_leaves_that_are_no_arrays_stay_with_the_module(path):
    mlp = eqx.nn.MLP(32, 16, 32, 2, key=jax.random.key(0))
    small = js.compress_params(mlp, [js.Rule(".*weight", "2:4", axis=1)])
    with pytest.raises(TypeError, match=r"'activation' is .* equinox.filter\(model"):
        js.save_sparse(path, small)
    js.save_sparse(path, eqx.filter(small, eqx.is_array))
    loaded = js.load_sparse(path, like=small)
    assert loaded.activation is mlp.activation
    assert_same(eqx.filter(loaded, eqx.is_array), eqx.filter(small, eqx.is_array))
    js.save_sparse(path, {"activation": jnp.ones(1)})
    with pytest.raises(js.SparseFileError, match=r"'activation' is float32.1., but"):
        js.load_sparse(path, like={"activation": jax.nn.relu})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("step"), "'step' is int32.., but in `like` it is missing"),
        (
            lambda t: t.update(new=jnp.ones(2)),
            r"'new' is missing, but in `like` it is float32.2",
        ),
        (
            lambda t: t.update(step=jnp.ones(())),
            "'step' is int32.., but in `like` it is float32.*: give the tree",
        ),
        (
            lambda t: t["mlp"].update(kernel=stored(0, n=1)),
            r"'mlp/kernel' is float32.16, 8. of 2:4 along axis -2, but in .* of 1:4",
        ),
        (lambda t: t["mlp"].update(bias=stored(0)), "'mlp/bias'"),
    ],
)
def test_a_tree_that_does_not_match_like(path, change, words):
    js.save_sparse(path, tree())
    like = tree()
    change(like)
    with pytest.raises(js.SparseFileError, match=words) as error:
        js.load_sparse(path, like=like)
    assert str(path) in str(error.value)


def test_a_tree_that_is_one_leaf_and_names_with_slashes(path):
    js.save_sparse(path, stored(0))
    assert_same(js.load_sparse(path), stored(0))
    odd = {"a": jnp.ones(1), "a/b": jnp.ones(2)}
    js.save_sparse(path, odd)
    assert_same(js.load_sparse(path, like=odd), odd)
    with pytest.raises(js.SparseFileError, match="'a/b' is within another"):
        js.load_sparse(path)


@pytest.mark.parametrize(
    ("leaves", "error", "words"),
    [
        ({"a": jax.random.key(0)}, TypeError, "leaf 'a' has dtype key"),
        ({"a": jnp.ones(2, jnp.int4)}, TypeError, "leaf 'a' has dtype int4"),
        ({"a": print}, TypeError, "leaf 'a' is <built-in"),
        ({"a": stored(0), "a/values": jnp.ones(2)}, ValueError, "'a/values'"),
        ({"__metadata__": jnp.ones(2)}, ValueError, "__metadata__"),
    ],
)
def test_what_cannot_be_saved_leaves_no_file(path, leaves, error, words):
    with pytest.raises(error, match=words):
        js.save_sparse(path, leaves)
    assert not list(path.parent.iterdir())


def test_invalid_paths(path):
    with pytest.raises(FileNotFoundError, match="neither a file"):
        js.load_sparse(path)
    with pytest.raises(ValueError, match=r"end in \.safetensors"):
        js.save_sparse(path.parent, tree())


@pytest.mark.parametrize("before", [{}, SPLIT])
@pytest.mark.parametrize("after", [{}, SPLIT])
def test_a_save_that_fails_anywhere_keeps_the_old_tree(
    path, monkeypatch, before, after
):
    js.save_sparse(path, tree(0), **before)
    replace, steps = os.replace, 5 if after else 1

    for step in range(steps + 1):
        left = [step]

        def replace_or_fail(*names, left=left):
            if not left[0]:
                raise OSError("the disk is full")
            left[0] -= 1
            replace(*names)

        monkeypatch.setattr(os, "replace", replace_or_fail)
        if step < steps:
            with pytest.raises(OSError, match="full"):
                js.save_sparse(path, tree(1), **after)
            assert_same(js.load_sparse(path), tree(0))
        else:
            js.save_sparse(path, tree(1), **after)
            assert_same(js.load_sparse(path), tree(1))
    assert len(list(path.parent.iterdir())) == steps  # no temporary file remains


@pytest.mark.parametrize(
    ("before", "after"), [({}, SPLIT), (SPLIT, {}), (SPLIT, SPLIT)]
)
def test_a_save_that_is_killed_while_it_cleans_up(path, monkeypatch, before, after):
    js.save_sparse(path, tree(0), **before)
    unlink = Path.unlink

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        js.save_sparse(path, tree(1), **after)
    monkeypatch.setattr(Path, "unlink", unlink)
    # From several files to one, the old tree is read until its index is removed.
    assert_same(js.load_sparse(path), tree(0 if not after else 1))
    js.save_sparse(path, tree(2), **after)
    assert_same(js.load_sparse(path), tree(2))
    assert len(list(path.parent.iterdir())) == (5 if after else 1)


def test_both_byte_orders_are_stored(tmp_path):
    path = tmp_path / "model.safetensors"
    js.save_sparse(path, {"a": np.arange(4, dtype=">f4")})
    np.testing.assert_array_equal(js.load_sparse(path)["a"], [0, 1, 2, 3])


def test_an_invalid_compressed_leaf_is_not_saved(tmp_path):
    path = tmp_path / "model.safetensors"
    small = {"w": js.compress(jnp.ones((32, 8)), "2:4", axis=0)}
    js.save_sparse(path, small)
    cast = jax.tree.map(lambda x: x.astype(jnp.bfloat16), small)
    with pytest.raises(ValueError, match=r"leaf 'w' of shape \(32, 8\) is compressed"):
        js.save_sparse(path, cast)
    assert js.load_sparse(path)["w"].shape == (32, 8)
