"""The decoder with a cache of keys and values: only new positions are computed.

`extend` takes all tokens of a prompt at once, and then one at a time. The blocks are in
a list.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Cache(NamedTuple):
    """Keys and values of earlier positions.

    Attributes:
      blocks: `(keys, values)` of each block, both `(batch, room, kv_heads, size)`.
      length: how many positions are filled.
    """

    blocks: list[tuple[jax.Array, jax.Array]]
    length: jax.Array


def empty_cache(model, batch, room):
    """A cache with room for so many positions."""

    def zeros(attention):
        heads = attention.key.out_features // attention.size
        return jnp.zeros((batch, room, heads, attention.size), attention.key.dtype)

    layers = [block.attention for block in model.blocks]
    blocks = [(zeros(layer), zeros(layer)) for layer in layers]
    return Cache(blocks, jnp.zeros((), jnp.int32))


def extend(model, tokens, cache):
    """Logits of `(batch, new)` tokens that follow the cache's, and the longer cache."""
    x, blocks = model.embed(tokens), []
    for block, earlier in zip(model.blocks, cache.blocks, strict=True):
        normed = block.norm1(x)
        mixed, longer = attend(block.attention, normed, earlier, cache.length)
        x = x + mixed
        x = x + block.mlp(block.norm2(x))
        blocks.append(longer)
    logits = model.embed.attend(model.norm(x))
    return logits, Cache(blocks, cache.length + tokens.shape[1])


def attend(attention, x, earlier, start):
    """Attention of positions from `start` to all up to themselves."""
    query, *new = attention.project(x, start)
    keys, values = longer = tuple(
        lax.dynamic_update_slice(old, part, (0, start, 0, 0))
        for old, part in zip(earlier, new, strict=True)
    )
    positions = start + jnp.arange(x.shape[1])
    seen = jnp.arange(keys.shape[1]) <= positions[:, None]
    mixed = jax.nn.dot_product_attention(query, keys, values, mask=seen[None, None])
    return attention.out(mixed.reshape(x.shape)), longer
