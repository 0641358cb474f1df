"""Llama, and the models that differ from it in a few fields: Mistral, Qwen2, Qwen3."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxsparse._language_models.config import Config
from jaxsparse._language_models.layers import (
    ACTIVATIONS,
    causal_attention,
    linear,
    rms_norm,
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
from jaxsparse._language_models.rope import ROPE_FIELDS, Rope, read_rope, rotate


_FIELDS = {
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act"),
    *("rms_norm_eps", "max_position_embeddings", "tie_word_embeddings", *ROPE_FIELDS),
}
_BIAS_FIELDS = {"llama": {"attention_bias", "mlp_bias"}, "qwen3": {"attention_bias"}}
_QWEN_WINDOW_FIELDS = {
    *("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
}
_WINDOW_FIELDS = {
    "mistral": {"sliding_window"},
    "qwen2": _QWEN_WINDOW_FIELDS,
    "qwen3": _QWEN_WINDOW_FIELDS,
}


@dataclass(frozen=True)
class Block:
    """The settings of a block.

    Attributes:
      head_size: the number of features of a head.
      epsilon: what norms add to mean squares.
      activation: the name of the activation.
      rope: the rotary position embeddings.
      head_norms: whether queries and keys are normalised, as in Qwen3.
      window: the number of tokens that a token sees, None for all before it.
    """

    head_size: int
    epsilon: float
    activation: str
    rope: Rope
    head_norms: bool
    window: int | None


def llama(model_type: str, config: Config, names: Collection[str]) -> LanguageModel:
    """Returns the model that a configuration describes.

    Args:
      model_type: `llama`, `mistral`, `qwen2` or `qwen3`.
      config: the configuration.
      names: the names of the tensors of the file.

    Raises:
      ValueError: a field is invalid, or one that the forward pass does not honour.
    """
    honoured = _BIAS_FIELDS.get(model_type, set()) | _WINDOW_FIELDS.get(
        model_type, set()
    )
    # In the reference implementation too, this has no effect but on rounding.
    config.check_names(_FIELDS | honoured | {"pretraining_tp"})
    vocab, width = config.integer("vocab_size"), config.integer("hidden_size")
    heads = config.integer("num_attention_heads")
    size = config.integer("head_dim", max(width // heads, 1))
    epsilon = config.number("rms_norm_eps")
    root = "model." if "model.embed_tokens.weight" in names else ""
    tensors = _block_tensors(model_type, config, width, heads, size)
    rope = read_rope(config, size)
    act = config.choice("hidden_act", ACTIVATIONS, "silu")
    head_norms = model_type == "qwen3"
    windows = _windows(model_type, config)
    fns = {
        window: partial(_block, Block(size, epsilon, act, rope, head_norms, window))
        for window in set(windows)
    }
    blocks = [
        block_stage(f"{root}layers.{i}", tensors, fns[window])
        for i, window in enumerate(windows)
    ]
    embedding = Tensor(f"{root}embed_tokens.weight", (vocab, width))
    head = {"norm.weight": Tensor(f"{root}norm.weight", (width,))}
    if config.flag("tie_word_embeddings", False):
        head["head.weight"] = embedding
    elif "lm_head.weight" in names:
        head["head.weight"] = Tensor("lm_head.weight", (vocab, width), inputs=1)
    return LanguageModel(
        model_type,
        vocab,
        config.integer("max_position_embeddings"),
        Stage(f"{root}embed_tokens", {"embed_tokens.weight": embedding}, _embed),
        tuple(blocks),
        Stage("lm_head", head, partial(_head, epsilon)),
    )


def _block_tensors(
    model_type: str, config: Config, width: int, heads: int, size: int
) -> dict[str, Tensor]:
    """Returns the tensors of a block by name."""
    kv_heads = config.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise config.error("num_key_value_heads", f"it must divide {heads}")
    hidden = config.integer("intermediate_size")
    has_attention_bias = model_type == "qwen2" or (
        "attention_bias" in _BIAS_FIELDS.get(model_type, ())
        and config.flag("attention_bias", False)
    )
    has_mlp_bias = model_type == "llama" and config.flag("mlp_bias", False)
    shapes = {
        "self_attn.q_proj": (heads * size, width),
        "self_attn.k_proj": (kv_heads * size, width),
        "self_attn.v_proj": (kv_heads * size, width),
        "self_attn.o_proj": (width, heads * size),
        "mlp.gate_proj": (hidden, width),
        "mlp.up_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
    }
    norms = {"input_layernorm": width, "post_attention_layernorm": width}
    if model_type == "qwen3":
        norms |= {"self_attn.q_norm": size, "self_attn.k_norm": size}
    tensors = {f"{k}.weight": Tensor("", (n,)) for k, n in norms.items()}
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = Tensor("", shape, inputs=1)
        is_output = model_type == "qwen2" and name == "self_attn.o_proj"
        is_mlp = name.startswith("mlp.")
        if has_mlp_bias if is_mlp else has_attention_bias and not is_output:
            tensors[f"{name}.bias"] = Tensor("", shape[:1])
    return tensors


def _windows(model_type: str, config: Config) -> list[int | None]:
    """Returns the window of each block."""
    layers = config.integer("num_hidden_layers")
    if model_type == "llama":
        return [None] * layers
    if model_type == "mistral":
        # Version 0.1 of Mistral has a window; later ones have null.
        if config.fields.get("sliding_window", 4096) is None:
            return [None] * layers
        return [config.integer("sliding_window", 4096)] * layers
    window, start = None, layers
    if config.flag("use_sliding_window", False):
        window = config.integer("sliding_window", 4096)
        start = config.fields.get("max_window_layers", 28)
        if type(start) is not int or start < 0:
            raise config.error("max_window_layers", "it must be a number of layers")
    kinds = config.fields.get("layer_types")
    if kinds is None:
        kinds = ["full_attention"] * layers
        kinds[start:] = ["sliding_attention"] * len(kinds[start:])
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise config.error("layer_types", f"it must be a list of {layers}")
    if not {"full_attention", "sliding_attention"}.issuperset(kinds):
        raise config.error("layer_types", "it may have full and sliding attention")
    if window is None and "sliding_attention" in kinds:
        raise config.error("layer_types", "use_sliding_window is not true")
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _embed(params: Params, tokens: Int[Array, "batch token"]) -> Features:
    weight = params["embed_tokens.weight"]
    return weight[tokens].astype(jnp.promote_types(weight.dtype, jnp.float32))


def _block(block: Block, params: Params, x: Features) -> Features:
    normed = rms_norm(x, params["input_layernorm.weight"], block.epsilon)
    x = x + _attention(block, params, normed)
    normed = rms_norm(x, params["post_attention_layernorm.weight"], block.epsilon)
    gate = ACTIVATIONS[block.activation](linear(params, "mlp.gate_proj", normed))
    hidden = gate * linear(params, "mlp.up_proj", normed)
    return x + linear(params, "mlp.down_proj", hidden)


def _attention(block: Block, params: Params, x: Features) -> Features:
    def heads(name: str) -> Float[Array, "batch token head feature"]:
        y = linear(params, f"self_attn.{name}_proj", x)
        return y.reshape(*y.shape[:-1], -1, block.head_size)

    query, key = heads("q"), heads("k")
    if block.head_norms:
        query = rms_norm(query, params["self_attn.q_norm.weight"], block.epsilon)
        key = rms_norm(key, params["self_attn.k_norm.weight"], block.epsilon)
    query, key = rotate(query, block.rope), rotate(key, block.rope)
    mixed = causal_attention(query, key, heads("v"), block.window)
    return linear(params, "self_attn.o_proj", mixed)


def _head(epsilon: float, params: Params, x: Features) -> Logits:
    return linear(params, "head", rms_norm(x, params["norm.weight"], epsilon))
