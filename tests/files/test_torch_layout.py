"""PyTorch's layout: conversion of trees both ways, and files of Hugging Face."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import linen as nn
from jax import lax

import jaxsparse as js
from tests.cli.command import pruned, weights
from tests.compressed.layout_oracle import assert_same_bits


@pytest.mark.usefixtures("without_annotations")
def test_a_layout_is_torch_or_flax_and_not_for_a_trace():
    params = {"up": {"kernel": jnp.ones((64, 32))}}
    with pytest.raises(ValueError, match="layout='tf': give 'flax' or 'torch'"):
        js.plan_sparsity(params, layout="tf")
    with pytest.raises(ValueError, match="no layout with fn, whose trace"):
        js.plan_sparsity(params, layout="torch", fn=lambda p: p["up"]["kernel"])


def model():
    """Returns Flax leaves by path, and the same as PyTorch tensors by hand."""
    dense, conv, embedding = weights((16, 8)), weights((3, 2, 16, 8)), weights((32, 16))
    depthwise, line = weights((3, 3, 1, 8)), weights((5, 16, 8))
    params = {
        "up": {"kernel": dense, "bias": weights((8,))},
        "conv": {"kernel": conv},
        "Conv_1": {"kernel": depthwise},
        "conv_line": {"kernel": line},
        "wte": {"embedding": embedding},
        "norm": {"scale": weights((16,)), "mean": weights((16,), 1)},
    }
    state = {
        "up.weight": dense.T,
        "up.bias": params["up"]["bias"],
        "conv.weight": conv.transpose(3, 2, 0, 1),
        "Conv_1.weight": depthwise.transpose(3, 2, 0, 1),
        "conv_line.weight": line.transpose(2, 1, 0),
        "wte.weight": embedding,
        "norm.weight": params["norm"]["scale"],
        "norm.running_mean": params["norm"]["mean"],
    }
    return params, state


def test_trees_are_converted_to_pytorch_and_back():
    params, state = model()
    result = js.to_torch_layout(params)
    assert result.keys() == state.keys()
    for name in state:
        assert_same_bits(result[name], state[name])
    back = js.from_torch_layout(state)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(assert_same_bits, back, params)


def test_a_transposed_convolution_kernel_computes_the_same():
    kernel, x = weights((3, 3, 4, 8)), weights((2, 5, 5, 4), 1)
    flax = lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    weight = js.to_torch_layout({"conv": {"kernel": kernel}})["conv.weight"]
    torch = lax.conv(x.transpose(0, 3, 1, 2), weight, (1, 1), "SAME")
    np.testing.assert_allclose(torch, flax.transpose(0, 3, 1, 2), atol=1e-4)


def attention(dim):
    shapes = dict.fromkeys(("query", "key", "value"), (16, 2, dim))
    shapes["out"] = (2, dim, 16)
    params = {name: {"kernel": weights(x)} for name, x in shapes.items()}
    return params | {"query": params["query"] | {"bias": weights((2, dim))}}


def test_attention_becomes_matrices():
    params, x = attention(8), weights((3, 16), 1)
    state = js.to_torch_layout(params)
    query = np.einsum("be,ehd->bhd", x, params["query"]["kernel"])
    np.testing.assert_allclose(
        x @ state["query.weight"].T, query.reshape(3, 16), rtol=1e-4, atol=1e-5
    )
    out = np.einsum("bhd,hde->be", query, params["out"]["kernel"])
    result = query.reshape(3, 16) @ state["out.weight"].T
    np.testing.assert_allclose(result, out, rtol=1e-4, atol=1e-5)
    assert_same_bits(state["query.bias"], params["query"]["bias"].reshape(16))


def foreign():
    """Returns PyTorch tensors whose layouts Flax's names do not determine."""
    return {
        "h.0.attn.c_attn.weight": weights((64, 192)),
        "h.0.attn.c_attn.bias": weights((192,)),
        "h.0.attn.c_proj.weight": weights((64, 64)),
        "layer1.0.downsample.0.weight": weights((32, 16, 1, 1)),
        "patch_embed.proj.weight": weights((64, 16, 8, 8)),
        "up.weight": weights((32, 16, 2, 2)),
        "up.bias": weights((16,)),
        "vocabulary_emb_table.weight": weights((64, 32)),
        "tok_embed.weight": weights((64, 32)),
        "bn.weight": weights((8,)),
        "bn.running_var": weights((8,)),
        "lstm.weight_ih_l0": weights((64, 32)),
    }


@pytest.mark.sweep
def test_like_restores_names_and_layouts(tmp_path):
    state = foreign()
    params = js.from_torch_layout(state)
    assert params["patch_embed"]["proj"]["kernel"].shape == (8, 8, 16, 64)
    result = js.to_torch_layout(params, like=state)
    assert result.keys() == state.keys()
    jax.tree.map(assert_same_bits, result, state)

    path = tmp_path / "model.safetensors"
    js.save_sparse(path, state)
    leaves, again = js.open_torch(path), tmp_path / "again.safetensors"
    small = js.compress_params(dict(leaves), [js.Rule(".*c_attn/kernel", "2:4")])
    js.save_torch(again, small, like=leaves.tensors.specs)
    leaf = js.open_tensors(again)["h.0.attn.c_attn.weight"]
    expected = pruned(state["h.0.attn.c_attn.weight"], 2, 4, 0)
    assert_same_bits(js.decompress(leaf), expected)
    assert {f"h.0.attn.c_attn.weight/{x}" for x in ("values", "indices")} < (
        safetensors.numpy.load_file(again).keys()
    )


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"new": {"kernel": weights((4, 4))}}, r"'new/kernel' .* is not in `like`"),
        (
            {"up": {"weight": weights((16, 32, 2, 2))}},
            r"'up/weight' has shape \(16, 32, 2, 2\), but by 'up.weight' in `like` it",
        ),
        (
            {"patch_embed": {"proj": {"kernel": weights((16, 64))}}},
            "give a leaf of that shape",
        ),
    ],
)
def test_leaves_that_do_not_fit_like_are_refused(params, words):
    with pytest.raises(ValueError, match=words):
        js.to_torch_layout(params, like=foreign())


def test_embeddings_of_flax_survive_the_round_trip():
    params = nn.Embed(64, 32, name="Embed_0").init(jax.random.key(0), jnp.zeros(1, int))
    params = {"Embed_0": params["params"], "up": {"kernel": weights((32, 64))}}
    state = js.to_torch_layout(params)
    plan = js.plan_sparsity(state, layout="torch")
    assert plan["Embed_0.weight"].decision == "dense: embedding"
    jax.tree.map(assert_same_bits, js.from_torch_layout(state), params)


def test_the_remedy_for_transposed_convolutions_is_right():
    kernel, x = weights((3, 2, 4, 8)), weights((1, 5, 6, 4), 1)
    params = {"ConvTranspose_0": {"kernel": kernel}}
    remedy = r"moveaxis\(flip\(kernel, \(0, 1\)\), \(-2, -1\), \(0, 1\)\)"
    with pytest.raises(ValueError, match=rf"'ConvTranspose_0/kernel' of .*{remedy}"):
        js.to_torch_layout(params)
    weight = np.moveaxis(np.flip(kernel, (0, 1)), (-2, -1), (0, 1))
    state = js.to_torch_layout({"ConvTranspose_0": {"weight": weight}})
    assert_same_bits(state["ConvTranspose_0.weight"], weight)
    # PyTorch adds to the output, at each input position, its product with the weight.
    torch = np.zeros((1, 7, 7, 8))
    for i, j in np.ndindex(5, 6):
        torch[0, i : i + 3, j : j + 2] += np.einsum("c,cohw->hwo", x[0, i, j], weight)
    layer = nn.ConvTranspose(8, (3, 2), padding="VALID", use_bias=False)
    flax = layer.apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_allclose(flax, torch, atol=1e-4)


def test_tensors_of_pytorch_are_named_with_the_remedy():
    tensor = type("Tensor", (), {"__module__": "torch", "shape": (8, 4), "dtype": 0})()
    for fn in (js.from_torch_layout, partial(js.plan_sparsity, layout="torch")):
        with pytest.raises(TypeError, match=r"'up.weight' of .* give .*x\.numpy\(\)"):
            fn({"up.weight": tensor})


@pytest.mark.sweep
def test_compressed_leaves_are_transposed_without_decompressing():
    params = attention(8) | {"up": {"kernel": weights((16, 8))}}
    rules = [js.Rule("(query|key|value)/.*", None), js.Rule(".*", "2:4", sizes=None)]
    small = js.to_torch_layout(js.compress_params(params, rules))
    dense = js.mask_params(params, js.create_masks(params, rules))
    for name in ("up.weight", "out.weight"):
        assert small[name].axis == -1
        leaf = js.to_torch_layout(dense)[name]
        assert_same_bits(js.decompress(small[name]), np.asarray(leaf))
    back = js.from_torch_layout(small)["up"]["kernel"]
    assert_same_bits(js.decompress(back), np.asarray(dense["up"]["kernel"]))
    odd = js.compress_params(attention(4), rules)
    with pytest.raises(ValueError, match=r"'out/kernel' of .*decompress it first"):
        js.to_torch_layout(odd)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"layers": {"kernel": weights((3, 4, 8))}}, "'layers/kernel' of shape"),
        ({"a": {"kernel": weights((4, 4)), "scale": weights((4,))}}, "name 'a.weight'"),
    ],
)
def test_leaves_without_a_layout_in_pytorch_are_refused(params, words):
    with pytest.raises(ValueError, match=words):
        js.to_torch_layout(params)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("a.weight", "a.scale"), "both have the path 'a/scale'"),
        (("a", "a.weight"), "'a.weight' is within"),
        (("a.weight", "a"), "'a' is around"),
    ],
)
def test_names_that_conflict_are_refused(names, words):
    with pytest.raises(ValueError, match=words):
        js.from_torch_layout(dict.fromkeys(names, weights((4,))))


def test_weights_of_unknown_layout_are_unchanged():
    weight = weights((8, 4, 3, 3))
    assert_same_bits(
        js.from_torch_layout({"deconv.weight": weight})["deconv"]["weight"], weight
    )


def test_masks_of_both_layouts_are_transposes():
    kernel = weights((64, 32))
    flax = js.create_masks({"up": {"kernel": kernel}})["up"]["kernel"]
    plan = js.plan_sparsity({"up.weight": kernel.T}, layout="torch")
    torch = js.create_masks({"up.weight": kernel.T}, plan)["up.weight"]
    assert_same_bits(torch, np.asarray(flax).T)


def test_files_are_exchanged_with_the_safetensors_package(tmp_path):
    params, state = model()
    path = tmp_path / "model.safetensors"
    js.save_torch(path, params)
    result = safetensors.numpy.load_file(path)
    assert result.keys() == state.keys()
    for name in state:
        assert_same_bits(result[name], np.ascontiguousarray(state[name]))
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata()["format"] == "pt"

    whole = {name: np.ascontiguousarray(x) for name, x in state.items()}
    path = tmp_path / "theirs.safetensors"
    safetensors.numpy.save_file(whole, path)
    leaves = js.open_torch(path)
    assert leaves.specs["conv/kernel"].shape == (3, 2, 16, 8)
    assert_same_bits(leaves["conv/kernel"], params["conv"]["kernel"])
    assert len(leaves) == len(list(leaves)) == 8
    with pytest.raises(js.SparseFileError, match="save_sparse did not write it"):
        js.load_sparse(path)


def test_compressed_files_in_their_layout(tmp_path):
    params = {"up": {"kernel": weights((64, 32))}}
    js.save_torch(tmp_path / "a.safetensors", js.compress_params(params))
    tensors = js.open_tensors(tmp_path / "a.safetensors")
    assert tensors.specs["up.weight"].shape == (32, 64)
    leaves = js.open_torch(tmp_path / "a.safetensors")
    dense = js.mask_params(params, js.create_masks(params))["up"]["kernel"]
    assert leaves.specs["up/kernel"].shape == (64, 32)
    assert_same_bits(js.decompress(leaves["up/kernel"]), np.asarray(dense))


def test_several_files_of_hugging_face(tmp_path):
    weight_map = {}
    for i in range(2):
        file = f"model-{i + 1:05}-of-00002.safetensors"
        safetensors.numpy.save_file(
            {f"l.{i}.weight": weights((8, 16), i)}, tmp_path / file
        )
        weight_map[f"l.{i}.weight"] = file
    index = {"metadata": {"total_size": 7}, "weight_map": weight_map}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    leaves = js.open_torch(tmp_path / "model.safetensors")
    assert_same_bits(leaves["l/1/kernel"], weights((8, 16), 1).T)
    index["weight_map"] = {}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(js.SparseFileError, match="names no tensor"):
        js.open_torch(tmp_path / "model.safetensors")


def test_specs_of_float64_stay_float64_without_x64(tmp_path):
    weight = np.random.default_rng(0).normal(size=(32, 64))
    safetensors.numpy.save_file({"up.weight": weight}, tmp_path / "a.safetensors")
    spec = js.open_torch(tmp_path / "a.safetensors").specs["up/kernel"]
    assert (spec.shape, spec.dtype) == ((64, 32), np.float64)
