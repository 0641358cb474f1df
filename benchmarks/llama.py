"""A decoder of Llama's shapes in plain JAX, with a cache of keys and values.

The layers are stacked arrays, which a scan goes through, or a list of dictionaries. The
cache is alike: `[layers, batch, positions, kv_heads, size]`, or a list of such arrays
with one layer each.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Sizes(NamedTuple):
    """The sizes of a decoder: by default those of Llama 3 8B."""

    layers: int = 32
    width: int = 4096
    hidden: int = 14336
    heads: int = 32
    kv_heads: int = 8
    head_size: int = 128
    vocabulary: int = 128256


class Cache(NamedTuple):
    """Keys and values of earlier positions."""

    keys: Any
    values: Any


def random_params(key, sizes: Sizes, dtype, unrolled: bool) -> dict[str, Any]:
    """Random weights that keep the scale of activations."""
    width, size = sizes.width, sizes.head_size
    shapes = {
        "query": (width, sizes.heads * size),
        "key": (width, sizes.kv_heads * size),
        "value": (width, sizes.kv_heads * size),
        "out": (sizes.heads * size, width),
        "gate": (width, sizes.hidden),
        "up": (width, sizes.hidden),
        "down": (sizes.hidden, width),
    }
    embed_key, head_key, key = jax.random.split(key, 3)

    def layer(key, *stack):
        keys = jax.random.split(key, len(shapes))
        weights = {
            name: _random_weight(key, (*stack, *shape), dtype)
            for key, (name, shape) in zip(keys, shapes.items(), strict=True)
        }
        norms = {name: jnp.ones((*stack, width), dtype) for name in ("norm1", "norm2")}
        return weights | norms

    count = sizes.layers
    layers = [layer(k) for k in jax.random.split(key, count)] if unrolled else None
    return {
        "embedding": _random_weight(embed_key, (sizes.vocabulary, width), dtype),
        "layers": layers or layer(key, count),
        "norm": jnp.ones(width, dtype),
        "head": _random_weight(head_key, (width, sizes.vocabulary), dtype),
    }


@partial(jax.jit, static_argnums=(1, 2))
def _random_weight(key, shape, dtype):
    return jax.random.normal(key, shape, dtype) * jnp.asarray(shape[-2] ** -0.5, dtype)


def random_cache(key, sizes: Sizes, batch: int, positions: int, dtype, unrolled: bool):
    """A full cache, whatever it says: `decode` overwrites its last positions."""
    rest = (batch, positions, sizes.kv_heads, sizes.head_size)
    stack = lambda key, layers: Cache(
        *(jax.random.normal(k, (layers, *rest), dtype) for k in jax.random.split(key))
    )
    if unrolled:
        return [stack(k, 1) for k in jax.random.split(key, sizes.layers)]
    return stack(key, sizes.layers)


def qkv(layer, x):
    """The queries, keys and values of all heads."""
    return x @ layer["query"], x @ layer["key"], x @ layer["value"]


def gate_up(layer, x):
    """The hidden activations of SwiGLU."""
    return jax.nn.silu(x @ layer["gate"]) * (x @ layer["up"])


def logits(params, x):
    """Float32 `(batch, vocabulary)`: in bfloat16 the best tokens would tie."""
    x = norm(x, params["norm"])
    return jnp.dot(x, params["head"], preferred_element_type=jnp.float32)


def norm(x, scale):
    """RMSNorm."""
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(wide**2, -1, keepdims=True)
    return (wide * lax.rsqrt(mean_square + 1e-5)).astype(x.dtype) * scale


def rotations(positions, size: int, base: float = 5e5):
    """Cosines and sines `(*positions, 1, size / 2)` of rotary embeddings."""
    rates = base ** (-jnp.arange(size // 2) / (size // 2))
    angles = jnp.asarray(positions)[..., None, None] * rates
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x, turns):
    """Rotary embedding of `(..., heads, size)`; features i and i + size / 2 pair."""
    cos, sin = turns
    first, second = jnp.split(x, 2, -1)
    pairs = (first * cos - second * sin, first * sin + second * cos)
    return jnp.concatenate(pairs, -1).astype(x.dtype)


def attend(query, keys, values, position):
    """Attention `(batch, heads, size)` of one query to all up to its position.

    Keys and values are `(batch, positions, kv_heads, size)`.
    """
    seen = jnp.full(len(query), position + 1, jnp.int32)
    mixed = jax.nn.dot_product_attention(
        query[:, None],
        keys,
        values,
        query_seq_lengths=jnp.ones_like(seen),
        key_value_seq_lengths=seen,
        implementation=_implementation(query),
    )
    return mixed[:, 0]


def _implementation(query):
    flash = jax.default_backend() == "gpu" and query.dtype.itemsize == 2
    return "cudnn" if flash else "xla"


def block(layer, x, turns, size: int, mix: Callable[..., tuple[Any, Any]]):
    """One layer; `mix` returns the attention, and what it keeps of keys and values."""
    products = qkv(layer, norm(x, layer["norm1"]))
    query, key, value = (y.reshape(*y.shape[:-1], -1, size) for y in products)
    mixed, kept = mix(rotate(query, turns), rotate(key, turns), value)
    x = x + mixed.reshape(*x.shape[:-1], -1) @ layer["out"]
    return x + gate_up(layer, norm(x, layer["norm2"])) @ layer["down"], kept


def prefill(params, tokens, *, size: int):
    """The logits after `(batch, length)` tokens, and the cache of their positions."""
    x = params["embedding"][tokens]
    turns = rotations(jnp.arange(tokens.shape[1]), size)
    step = lambda x, layer: block(layer, x, turns, size, mix_causal)
    if isinstance(params["layers"], list):
        caches = []
        for layer in params["layers"]:
            x, kept = step(x, layer)
            caches.append(jax.tree.map(lambda x: x[None], kept))
    else:
        x, caches = lax.scan(step, x, params["layers"])
    return logits(params, x[:, -1]), caches


def mix_causal(query, key, value):
    """Causal attention of a whole sequence to itself, and its keys and values."""
    mixed = jax.nn.dot_product_attention(
        query, key, value, is_causal=True, implementation=_implementation(query)
    )
    return mixed, Cache(key, value)


def decode_step(params, cache, tokens, position, *, size: int):
    """The logits after one more token of each sequence, and the cache with it."""
    x, turns = params["embedding"][tokens], rotations(position, size)

    def step(carry, indexed):
        (x, cache), (index, layer) = carry, indexed
        mix = partial(_mix_cached, cache, index, position)
        return block(layer, x, turns, size, mix), None

    if isinstance(params["layers"], list):
        caches = []
        for layer, own in zip(params["layers"], cache, strict=True):
            (x, own), _ = step((x, own), (0, layer))
            caches.append(own)
        return logits(params, x), caches
    layers = params["layers"]
    indices = jnp.arange(len(layers["norm1"]))
    (x, cache), _ = lax.scan(step, (x, cache), (indices, layers))
    return logits(params, x), cache


def _mix_cached(cache, layer, position, query, key, value):
    """Writes one position of one layer, where the cache lies, and attends to it."""
    start = (layer, 0, position, 0, 0)
    write = lambda old, new: lax.dynamic_update_slice(old, new[None, :, None], start)
    cache = Cache(write(cache.keys, key), write(cache.values, value))
    keys, values = (lax.dynamic_index_in_dim(x, layer, 0, False) for x in cache)
    return attend(query, keys, values, position), cache


def decode(params, cache, tokens, position, given, *, size: int):
    """Greedy decoding, one step for each row of `given`.

    Args:
      params: as of `random_params`.
      cache: of the positions before `position`, with room for the steps.
      tokens: `(batch,)`, the first ones to go on from.
      position: theirs.
      given: `(steps, batch)`, tokens to go on with, or -1 for the likeliest.
      size: of a head.

    Returns:
      The likeliest tokens `(steps, batch)`, and the last logits.
    """

    def step(carry, inputs):
        (tokens, cache, _), (index, given) = carry, inputs
        scores, cache = decode_step(params, cache, tokens, position + index, size=size)
        chosen = jnp.argmax(scores, -1)
        return (jnp.where(given < 0, chosen, given), cache, scores), chosen

    scores = jnp.zeros((len(tokens), params["head"].shape[-1]), jnp.float32)
    inputs = (jnp.arange(len(given)), given)
    (_, _, scores), chosen = lax.scan(step, (tokens, cache, scores), inputs)
    return chosen, scores
