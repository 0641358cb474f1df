"""PyTorch's layout: axes by its names, trees there and back, files of Hugging Face."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax import lax

import jaxsparse as js
from tests.compressed import assert_same_bits


def weights(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def decisions(**shapes):
    state = {name: jax.ShapeDtypeStruct(x, "float32") for name, x in shapes.items()}
    plan = js.plan_sparsity(state, "2:4", layout="torch")
    return {leaf.path: leaf.decision for leaf in plan.leaves}


def test_groups_lie_along_the_inputs_of_pytorch():
    found = decisions(
        **{
            "model.embed_tokens.weight": (320, 64),
            "model.layers.0.self_attn.q_proj.weight": (32, 64),
            "model.layers.0.self_attn.q_proj.bias": (32,),
            "model.layers.0.mlp.down_proj.weight": (64, 128),
            "model.layers.0.input_layernorm.weight": (64,),
            "vision.patch_embed.proj.weight": (32, 16, 3, 3),
            "vision.depthwise.weight": (32, 1, 3, 3),
            "vision.conv_transpose.weight": (32, 16, 3, 3),
            "rnn.weight_ih_l0": (64, 32),
            "experts.gate_up_proj": (8, 64, 64),
            "lm_head.weight": (320, 64),
            "fc.weight": (16, 64),
            "block.fc.weight": (16, 64),
        }
    )
    along_1 = {path for path, text in found.items() if text == "2:4 along axis 1"}
    assert along_1 == {
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "vision.patch_embed.proj.weight",
        "rnn.weight_ih_l0",
        "block.fc.weight",
    }
    assert found["model.embed_tokens.weight"] == "dense: embedding"
    assert found["model.layers.0.input_layernorm.weight"].startswith("dense: bias")
    assert found["vision.depthwise.weight"].startswith("dense: depthwise")
    assert found["lm_head.weight"] == found["fc.weight"] == "dense: head"
    for path in ("vision.conv_transpose.weight", "experts.gate_up_proj"):
        assert found[path].startswith("dense: ambiguous")


@pytest.mark.parametrize(
    ("bias", "words"), [(192, "along axis 0"), (64, "along axis 1"), (None, "ambig")]
)
def test_biases_tell_the_layout_of_gpt_2(bias, words):
    shapes = {"h.0.attn.c_attn.weight": (64, 192), "h.0.attn.c_proj.weight": (64, 64)}
    if bias:
        shapes["h.0.attn.c_attn.bias"] = (bias,)
    found = decisions(**shapes, **{"other.weight": (16, 16)})
    for name in ("c_attn", "c_proj"):
        assert words in found[f"h.0.attn.{name}.weight"]


def test_a_layout_is_one_of_two_and_not_for_a_trace():
    params = {"up": {"kernel": jnp.ones((64, 32))}}
    with pytest.raises(ValueError, match="layout='tf': without fn give"):
        js.plan_sparsity(params, layout="tf")
    with pytest.raises(ValueError, match="with fn the trace"):
        js.plan_sparsity(params, layout="torch", fn=lambda p: p["up"]["kernel"])


def model():
    """Leaves of Flax by path, and what PyTorch has for them, turned by hand."""
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


def test_trees_go_to_pytorch_and_come_back():
    params, state = model()
    found = js.to_torch_layout(params)
    assert found.keys() == state.keys()
    for name in state:
        assert_same_bits(found[name], state[name])
    back = js.from_torch_layout(state)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(assert_same_bits, back, params)


def test_a_turned_convolution_computes_the_same():
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
    found = query.reshape(3, 16) @ state["out.weight"].T
    np.testing.assert_allclose(found, out, rtol=1e-4, atol=1e-5)
    assert_same_bits(state["query.bias"], params["query"]["bias"].reshape(16))


def test_compressed_leaves_are_turned_as_they_are():
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
def test_what_has_no_layout_in_pytorch_is_named(params, words):
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
def test_names_that_meet_are_refused(names, words):
    with pytest.raises(ValueError, match=words):
        js.from_torch_layout(dict.fromkeys(names, weights((4,))))


def test_weights_of_unknown_layout_stay_as_they_are():
    weight = weights((8, 4, 3, 3))
    assert_same_bits(
        js.from_torch_layout({"deconv.weight": weight})["deconv"]["weight"], weight
    )


def test_masks_of_both_layouts_are_the_same_turned():
    kernel = weights((64, 32))
    flax = js.create_masks({"up": {"kernel": kernel}})["up"]["kernel"]
    plan = js.plan_sparsity({"up.weight": kernel.T}, layout="torch")
    torch = js.create_masks({"up.weight": kernel.T}, plan)["up.weight"]
    assert_same_bits(torch, np.asarray(flax).T)


def test_others_read_the_files_and_we_read_theirs(tmp_path):
    params, state = model()
    path = tmp_path / "model.safetensors"
    js.save_torch(path, params)
    found = safetensors.numpy.load_file(path)
    assert found.keys() == state.keys()
    for name in state:
        assert_same_bits(found[name], np.ascontiguousarray(state[name]))
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
