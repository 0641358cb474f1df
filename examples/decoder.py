"""A language model in Llama's manner, with Flax NNX."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx


@dataclass(frozen=True)
class Config:
    """The sizes of a decoder."""

    vocab: int
    width: int
    layers: int
    query_heads: int
    kv_heads: int
    hidden: int
    rope_base: float
    epsilon: float
    attention: str = "xla"  # or "cudnn": faster, for bfloat16 on a GPU


def rotate(x, base, start=0):
    """Rotary embedding of `(batch, seq, heads, size)`, of positions from `start`.

    Features 2i and 2i + 1 are a pair, as in llama.cpp's row order of the weights.
    """
    half = x.shape[-1] // 2
    positions = start + jnp.arange(x.shape[1])
    angles = positions[:, None, None] * base ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    even, odd = x[..., ::2], x[..., 1::2]
    pairs = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return pairs.reshape(x.shape).astype(x.dtype)


class Attention(nnx.Module):
    """Causal self-attention; several query heads share one key and value head."""

    def __init__(self, config, dtype, rngs):
        self.size, self.base = config.width // config.query_heads, config.rope_base
        self.implementation = config.attention
        kv_width = config.kv_heads * self.size
        options = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        self.query = nnx.Linear(config.width, config.width, **options)
        self.key = nnx.Linear(config.width, kv_width, **options)
        self.value = nnx.Linear(config.width, kv_width, **options)
        self.out = nnx.Linear(config.width, config.width, **options)

    def project(self, x, start=0):
        heads = lambda y: y.reshape(*y.shape[:-1], -1, self.size)
        turned = lambda y: rotate(heads(y), self.base, start)
        return turned(self.query(x)), turned(self.key(x)), heads(self.value(x))

    def __call__(self, x):
        mixed = jax.nn.dot_product_attention(
            *self.project(x), is_causal=True, implementation=self.implementation
        )
        return self.out(mixed.reshape(x.shape))


class MLP(nnx.Module):
    """SwiGLU."""

    def __init__(self, config, dtype, rngs):
        options = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        self.gate = nnx.Linear(config.width, config.hidden, **options)
        self.up = nnx.Linear(config.width, config.hidden, **options)
        self.down = nnx.Linear(config.hidden, config.width, **options)

    def __call__(self, x):
        return self.down(nnx.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Attention and a feed-forward network, each behind a norm."""

    def __init__(self, config, dtype, rngs):
        norm = lambda: nnx.RMSNorm(
            config.width, epsilon=config.epsilon, dtype=dtype, rngs=rngs
        )
        self.norm1, self.norm2 = norm(), norm()
        self.attention = Attention(config, dtype, rngs)
        self.mlp = MLP(config, dtype, rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Decoder(nnx.Module):
    """Tokens `(batch, seq)` to float32 logits `(batch, seq, vocab)`.

    The blocks compute in `dtype`; parameters, the sum over blocks and the tied head
    stay float32. Stacked, they have one array for all blocks and run in a loop, which
    compiles in seconds; in a list each can be pruned after the ones before it.
    """

    def __init__(self, config, rngs, dtype=jnp.float32, stacked=False):
        self.embed = nnx.Embed(config.vocab, config.width, rngs=rngs)
        make = lambda rngs: Block(config, dtype, rngs)
        if stacked:
            self.blocks = nnx.vmap(make)(rngs.split(config.layers))
        else:
            self.blocks = nnx.List([make(rngs) for _ in range(config.layers)])
        self.norm = nnx.RMSNorm(config.width, epsilon=config.epsilon, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        if isinstance(self.blocks, Block):
            graph, blocks = nnx.split(self.blocks)
            step = lambda x, block: (nnx.merge(graph, block)(x), None)
            x, _ = jax.lax.scan(step, x, blocks)
        else:
            for block in self.blocks:
                x = block(x)
        return self.embed.attend(self.norm(x))


def loss(model, tokens):
    """Mean cross-entropy, in nats, of each next token of `(batch, seq)`."""
    return optax.softmax_cross_entropy_with_integer_labels(
        model(tokens[:, :-1]), tokens[:, 1:]
    ).mean()


def perplexity(mean_loss, params, pieces, batch=8):
    """Of each next token of `(count, seq)`; `mean_loss(params, pieces)` is compiled."""
    parts = np.array_split(pieces, -(-len(pieces) // batch))
    losses = [mean_loss(params, part) for part in parts]
    return float(np.exp(np.average(losses, weights=[len(part) for part in parts])))


def small_decoder(rngs, dtype=jnp.float32, stacked=False):
    """A tiny decoder over bytes, with random weights."""
    config = Config(
        vocab=256,
        width=32,
        layers=2,
        query_heads=4,
        kv_heads=2,
        hidden=64,
        rope_base=1e4,
        epsilon=1e-5,
    )
    return Decoder(config, rngs, dtype, stacked)
