"""GPT-2, whose weights are `(in, out)` in PyTorch's files too."""

from collections.abc import Collection
from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxsparse._language_models.config import Config
from jaxsparse._language_models.layers import (
    ACTIVATIONS,
    causal_attention,
    layer_norm,
    linear,
)
from jaxsparse._language_models.model import (
    Features,
    LanguageModel,
    Logits,
    Params,
    Stage,
    Tensor,
    block_stage,
)


_Outputs = Float[Array, "batch token output"]

_FIELDS = {
    *("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"),
    *("activation_function", "layer_norm_epsilon", "tie_word_embeddings"),
}
#: Without effect here: the first is a matter of rounding, the second repeats
#: `n_positions`, and the others are of other heads.
_UNUSED_FIELDS = {
    *("reorder_and_upcast_attn", "n_ctx", "summary_type", "summary_use_proj"),
    *("summary_activation", "summary_proj_to_labels", "summary_first_dropout"),
}
_FIXED_FIELDS = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def gpt2(config: Config, names: Collection[str]) -> LanguageModel:
    """Returns the model that a configuration describes.

    Args:
      config: the configuration.
      names: the names of the tensors of the file.

    Raises:
      ValueError: a field is invalid, or one that the forward pass does not honour.
    """
    config.check_names(_FIELDS | _UNUSED_FIELDS, _FIXED_FIELDS)
    vocab, width = config.integer("vocab_size"), config.integer("n_embd")
    positions, heads = config.integer("n_positions"), config.integer("n_head")
    if width % heads:
        raise config.error("n_head", f"it must divide {width}")
    epsilon = config.number("layer_norm_epsilon", 1e-5)
    act = config.choice("activation_function", ACTIVATIONS, "gelu_new")
    root = "transformer." if "transformer.wte.weight" in names else ""
    tensors = _block_tensors(width, config.integer("n_inner", 4 * width))
    fn = partial(_block, heads, epsilon, act)
    embedding = Tensor(f"{root}wte.weight", (vocab, width))
    embeddings = {
        "wte.weight": embedding,
        "wpe.weight": Tensor(f"{root}wpe.weight", (positions, width)),
    }
    head = {
        "norm.weight": Tensor(f"{root}ln_f.weight", (width,)),
        "norm.bias": Tensor(f"{root}ln_f.bias", (width,)),
    }
    if config.flag("tie_word_embeddings", True):
        head["head.weight"] = embedding
    elif "lm_head.weight" in names:
        head["head.weight"] = Tensor("lm_head.weight", (vocab, width), inputs=1)
    blocks = [
        block_stage(f"{root}h.{i}", tensors, fn)
        for i in range(config.integer("n_layer"))
    ]
    return LanguageModel(
        "gpt2",
        vocab,
        positions,
        Stage(f"{root}wte", embeddings, _embed),
        tuple(blocks),
        Stage("lm_head", head, partial(_head, epsilon)),
    )


def _block_tensors(width: int, hidden: int) -> dict[str, Tensor]:
    """Returns the tensors of a block by name."""
    shapes = {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, hidden),
        "mlp.c_proj": (hidden, width),
    }
    tensors = {
        f"{name}.{part}": Tensor("", (width,))
        for name in ("ln_1", "ln_2")
        for part in ("weight", "bias")
    }
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = Tensor("", shape, inputs=0)
        tensors[f"{name}.bias"] = Tensor("", shape[1:])
    return tensors


def _embed(params: Params, tokens: Int[Array, "batch token"]) -> Features:
    words, positions = params["wte.weight"], params["wpe.weight"]
    dtype = jnp.promote_types(words.dtype, jnp.float32)
    return words[tokens].astype(dtype) + positions[: tokens.shape[1]].astype(dtype)


def _block(
    heads: int, epsilon: float, activation: str, params: Params, x: Features
) -> Features:
    normed = layer_norm(x, params["ln_1.weight"], params["ln_1.bias"], epsilon)
    projected = _conv1d(params, "attn.c_attn", normed)
    query, key, value = (
        part.reshape(*x.shape[:2], heads, -1)
        for part in jnp.split(projected, 3, axis=-1)
    )
    x = x + _conv1d(params, "attn.c_proj", causal_attention(query, key, value))
    normed = layer_norm(x, params["ln_2.weight"], params["ln_2.bias"], epsilon)
    hidden = ACTIVATIONS[activation](_conv1d(params, "mlp.c_fc", normed))
    return x + _conv1d(params, "mlp.c_proj", hidden)


def _conv1d(params: Params, name: str, x: Features) -> _Outputs:
    """Applies a linear layer whose weight is `(in, out)`, which PyTorch calls so."""
    weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]
    return x @ weight.astype(x.dtype) + bias.astype(x.dtype)


def _head(epsilon: float, params: Params, x: Features) -> Logits:
    normed = layer_norm(x, params["norm.weight"], params["norm.bias"], epsilon)
    return linear(params, "head", normed)
