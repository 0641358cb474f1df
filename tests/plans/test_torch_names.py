"""Axes by the names that PyTorch and Hugging Face give."""

import jax
import pytest

import jaxsparse as js


HEAD = "dense: head; pass dense_head=False"


def decisions(**shapes):
    state = {name: jax.ShapeDtypeStruct(x, "float32") for name, x in shapes.items()}
    plan = js.plan_sparsity(state, "2:4", layout="torch")
    return {leaf.path: leaf.decision for leaf in plan.leaves}


def test_groups_lie_along_the_inputs_of_pytorch():
    plans = decisions(
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
    along_1 = {path for path, text in plans.items() if text == "2:4 along axis 1"}
    assert along_1 == {
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "vision.patch_embed.proj.weight",
        "rnn.weight_ih_l0",
        "block.fc.weight",
    }
    assert plans["model.embed_tokens.weight"] == "dense: embedding"
    assert plans["model.layers.0.input_layernorm.weight"].startswith("dense: bias")
    assert plans["vision.depthwise.weight"].startswith("dense: depthwise")
    assert plans["lm_head.weight"] == plans["fc.weight"] == HEAD
    for path in ("vision.conv_transpose.weight", "experts.gate_up_proj"):
        assert plans[path].startswith("dense: ambiguous")


@pytest.mark.parametrize(
    ("bias", "words"), [(192, "along axis 0"), (64, "along axis 1"), (None, "ambig")]
)
def test_biases_tell_the_layout_of_gpt_2(bias, words):
    shapes = {"h.0.attn.c_attn.weight": (64, 192), "h.0.attn.c_proj.weight": (64, 64)}
    if bias:
        shapes["h.0.attn.c_attn.bias"] = (bias,)
    plans = decisions(**shapes, **{"other.weight": (16, 16)})
    for name in ("c_attn", "c_proj"):
        assert words in plans[f"h.0.attn.{name}.weight"]


@pytest.mark.parametrize(
    "module",
    [
        *("Embed_0", "Embedding", "embedder", "embedding_table", "embed_in"),
        *("tok_emb", "token_emb", "pos_emb", "word_emb", "time_embed", "tok_embed"),
        *("token_embed", "query_embed", "row_embed", "token_embedder", "wte"),
        *("embed_tokens", "embed_tokens_per_layer", "position_embeddings"),
    ],
)
def test_embeddings_are_matrices_without_bias_by_many_names(module):
    plans = decisions(
        **{
            f"a.{module}.weight": (320, 64),
            f"vision.{module}.weight": (32, 16, 3, 3),
            f"b.{module}.weight": (32, 64),
            f"b.{module}.bias": (32,),
            f"{module}.proj.weight": (32, 64),
        }
    )
    assert plans.pop(f"a.{module}.weight") == "dense: embedding"
    assert plans.pop(f"b.{module}.bias").startswith("dense: bias")
    assert set(plans.values()) == {"2:4 along axis 1"}


def test_what_may_be_an_embedding_and_heads_stay_dense():
    plans = decisions(
        **{
            "speakerEmbTable.weight": (64, 32),
            "model.output_layer.weight": (320, 64),
            "mlm_head.weight": (320, 64),
            "proj_out.weight": (320, 64),
            "block.proj_out.weight": (64, 64),
        }
    )
    maybe = plans.pop("speakerEmbTable.weight")
    assert maybe.startswith("dense: ambiguous: 'speakerEmbTable' may be an embedding")
    assert plans.pop("block.proj_out.weight") == "2:4 along axis 1"
    assert set(plans.values()) == {HEAD}


def test_a_bias_that_is_not_of_axis_0_leaves_doubt():
    plans = decisions(
        **{
            "up.0.weight": (64, 32, 4, 4),
            "up.0.bias": (32,),
            "proj.weight": (64, 192),
            "proj.bias": (192,),
            "attn.in_proj_weight": (96, 32),
            "attn.in_proj_bias": (96,),
        }
    )
    for name, bias in (("up.0.weight", 32), ("proj.weight", 192)):
        words = f"dense: ambiguous: its bias has shape ({bias},), axis 0 has size 64"
        assert plans[name].startswith(words)
    assert plans["attn.in_proj_weight"] == "2:4 along axis 1"
