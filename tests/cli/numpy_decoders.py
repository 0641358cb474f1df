"""Tiny decoders, in folders as Hugging Face's, and their forward passes in NumPy.

All in float64, one head and one token after the other, from the papers.
"""

import json
from functools import partial

import numpy as np
import safetensors.numpy


WIDTH, VOCAB, LAYERS = 32, 32, 2

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 100.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "attention_dropout": 0.1,
    "rope_scaling": None,
}
GPT2 = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": VOCAB,
    "n_positions": 64,
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": 2,
    "n_inner": WIDTH,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
}


def shapes(config):
    """Returns the shapes of the tensors of a model."""
    width = WIDTH
    if config["model_type"] == "gpt2":
        block = {
            "ln_1": (width,),
            "ln_2": (width,),
            "attn.c_attn": (width, 3 * width),
            "attn.c_proj": (width, width),
            "mlp.c_fc": (width, width),
            "mlp.c_proj": (width, width),
        }
        of = {
            "transformer.wte.weight": (VOCAB, width),
            "transformer.wpe.weight": (64, width),
            "transformer.ln_f.weight": (width,),
            "transformer.ln_f.bias": (width,),
        }
        for i in range(LAYERS):
            for name, shape in block.items():
                of[f"transformer.h.{i}.{name}.weight"] = shape
                of[f"transformer.h.{i}.{name}.bias"] = shape[-1:]
        return of
    half = (width // 2, width)
    block = {
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": half,
        "self_attn.v_proj": half,
        "self_attn.o_proj": (width, width),
        **{f"mlp.{x}_proj": (width, width) for x in ("gate", "up", "down")},
    }
    of = {"model.embed_tokens.weight": (VOCAB, width), "model.norm.weight": (width,)}
    for i in range(config["num_hidden_layers"]):
        of |= {f"model.layers.{i}.{k}.weight": shape for k, shape in block.items()}
    return of | {"lm_head.weight": (VOCAB, width)}


def random_weights(config, dtype=np.float32, seed=0):
    draw = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes(config).items():
        scale = 1 / np.sqrt(WIDTH) if len(shape) == 2 else 0.3
        shift = 1.0 if len(shape) == 1 and name.endswith(".weight") else 0.0
        weights[name] = (scale * draw.normal(size=shape) + shift).astype(dtype)
    return weights


def random_tokens(samples=32, length=12, seed=1):
    return np.random.default_rng(seed).integers(0, VOCAB, (samples, length))


def write_folder(folder, config, weights):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    path = folder / "model.safetensors"
    safetensors.numpy.save_file(weights, path, metadata={"format": "pt"})
    return folder


def stages(config):
    """Returns the stages in order, as `fn(weights, x, record)`.

    `record(name, x)` is called with the inputs of each weight that is not embedded.
    """
    if config["model_type"] == "gpt2":
        return [
            lambda weights, x, _: gpt2_embed(weights, x),
            *(partial(gpt2_block, f"transformer.h.{i}.") for i in range(LAYERS)),
            lambda weights, x, _: gpt2_head(weights, x),
        ]
    layers = range(config["num_hidden_layers"])
    return [
        lambda weights, x, _: weights["model.embed_tokens.weight"][x],
        *(partial(llama_block, f"model.layers.{i}.") for i in layers),
        llama_head,
    ]


def logits(config, weights, tokens):
    weights = {name: weight.astype(np.float64) for name, weight in weights.items()}
    x = tokens
    for fn in stages(config):
        x = fn(weights, x, lambda *_: None)
    return x


def attention(query, key, value, size):
    """Mixes `(batch, token, heads * size)`, one query head and token at a time."""
    batch, length, width = query.shape
    shared = width // key.shape[-1]  # queries to one key
    mixed = np.zeros((batch, length, width))
    for head in range(width // size):
        mine = slice(head * size, (head + 1) * size)
        theirs = slice(head // shared * size, (head // shared + 1) * size)
        for t in range(length):
            keys, values = key[:, : t + 1, theirs], value[:, : t + 1, theirs]
            scores = (keys @ query[:, t, mine, None])[..., 0] / np.sqrt(size)
            share = np.exp(scores - scores.max(-1, keepdims=True))
            share /= share.sum(-1, keepdims=True)
            mixed[:, t, mine] = (share[..., None] * values).sum(1)
    return mixed


def rms_norm(x, gain):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * gain


def turn(x, size):
    """Rotates features as complex numbers whose parts are `size / 2` apart."""
    heads = x.reshape(*x.shape[:-1], -1, size)
    numbers = heads[..., : size // 2] + 1j * heads[..., size // 2 :]
    speeds = [100.0 ** (-2 * i / size) for i in range(size // 2)]
    angles = np.outer(np.arange(x.shape[1]), speeds)[:, None]
    turned = numbers * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=-1).reshape(x.shape)


def llama_block(prefix, weights, x, record):
    def linear(name, x):
        record(f"{prefix}{name}.weight", x)
        return x @ weights[f"{prefix}{name}.weight"].T

    size = WIDTH // 2
    h = rms_norm(x, weights[f"{prefix}input_layernorm.weight"])
    query, key, value = (linear(f"self_attn.{k}_proj", h) for k in "qkv")
    mixed = attention(turn(query, size), turn(key, size), value, size)
    x = x + linear("self_attn.o_proj", mixed)
    h = rms_norm(x, weights[f"{prefix}post_attention_layernorm.weight"])
    gate = linear("mlp.gate_proj", h)
    up = linear("mlp.up_proj", h)
    return x + linear("mlp.down_proj", gate / (1 + np.exp(-gate)) * up)


def llama_head(weights, x, record):
    x = rms_norm(x, weights["model.norm.weight"])
    record("lm_head.weight", x)
    return x @ weights["lm_head.weight"].T


def gpt2_embed(weights, tokens):
    positions = weights["transformer.wpe.weight"][: tokens.shape[1]]
    return weights["transformer.wte.weight"][tokens] + positions


def layer_norm(weights, name, x):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gpt2_block(prefix, weights, x, record):
    def linear(name, x):
        record(f"{prefix}{name}.weight", x)
        return x @ weights[f"{prefix}{name}.weight"] + weights[f"{prefix}{name}.bias"]

    joined = linear("attn.c_attn", layer_norm(weights, f"{prefix}ln_1", x))
    query, key, value = (joined[..., i * WIDTH : (i + 1) * WIDTH] for i in range(3))
    x = x + linear("attn.c_proj", attention(query, key, value, WIDTH // 2))
    h = linear("mlp.c_fc", layer_norm(weights, f"{prefix}ln_2", x))
    h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return x + linear("mlp.c_proj", h)


def gpt2_head(weights, x):
    x = layer_norm(weights, "transformer.ln_f", x)
    return x @ weights["transformer.wte.weight"].T


def prune_in_order(config, weights, tokens, prune):
    """Prunes stage by stage, each by the inputs that the pruned ones before it give.

    `prune(name, weight, inputs)` returns the weight to use.
    """
    weights = {name: weight.astype(np.float64) for name, weight in weights.items()}
    x = tokens
    for fn in stages(config):
        inputs = {}
        fn(weights, x, inputs.__setitem__)
        for name, of_weight in inputs.items():
            weights[name] = prune(name, weights[name], of_weight)
        x = fn(weights, x, lambda *_: None)
    return weights
