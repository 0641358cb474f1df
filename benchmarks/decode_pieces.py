"""Where the time of a decoding step goes: its pieces, each timed alone.

A program has one piece of all layers in turn, many times. Its bytes are those of the
weights, or of the cache, that it reads.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.decode_models import Model, compile_program, nbytes
from benchmarks.llama import (
    Cache,
    Sizes,
    attend,
    gate_up,
    logits,
    qkv,
    random_cache,
)
from benchmarks.timing import medians


TURNS = 16


class Piece(NamedTuple):
    """What is computed of `(batch, width)`, and from which arrays of the parameters."""

    fn: Callable[[Any, Any], Any]
    width: int
    select: Callable[[Any], Any]


def pieces(sizes: Sizes, cache: Any) -> dict[str, Piece]:
    """The pieces of a step that read much."""
    heads = sizes.heads * sizes.head_size
    mix = partial(_mix, sizes)
    head = lambda params: [{name: params[name] for name in ("norm", "head")}]
    multiply = lambda name: lambda layer, x: x @ layer[name]
    return {
        "query, key, value": Piece(qkv, sizes.width, _weights("query", "key", "value")),
        "attention": Piece(mix, heads, lambda _: cache),
        "out": Piece(multiply("out"), heads, _weights("out")),
        "gate, up": Piece(gate_up, sizes.width, _weights("gate", "up")),
        "down": Piece(multiply("down"), sizes.hidden, _weights("down")),
        "head": Piece(logits, sizes.width, head),
    }


def piece_rows(
    models: Mapping[str, Model],
    steps: Mapping[str, float],
    batch: int,
    sizes: Sizes,
    positions: int,
    bandwidth: float,
    rounds: int,
) -> Iterator[dict]:
    """Milliseconds of each piece in each format, and those of reading its bytes.

    The last row is what the pieces leave of `steps`, the milliseconds of whole steps.
    """
    params = models["dense"].params
    key, dtype = jax.random.key(3), params["head"].dtype
    unrolled = isinstance(params["layers"], list)
    cache = random_cache(key, sizes, batch, positions, dtype, unrolled)
    rest = dict(steps)
    for name, piece in pieces(sizes, cache).items():
        x = jax.random.normal(key, (batch, piece.width), dtype)
        parts = {
            format: Model(piece.select(model.params), model.adapt)
            for format, model in models.items()
        }
        fn = partial(_in_turn, piece.fn)
        programs = {
            f: partial(compile_program(part, fn, x).run, x) for f, part in parts.items()
        }
        times, _ = medians(programs, rounds)
        row: dict[str, Any] = {"batch": batch, "piece": name}
        for format, part in parts.items():
            row[f"{format} ms"] = times[format] / TURNS * 1e3
            row[f"{format} floor"] = nbytes(part.params) / bandwidth * 1e3
            rest[format] -= row[f"{format} ms"]
        yield row
    yield {"batch": batch, "piece": "rest"} | {f"{f} ms": t for f, t in rest.items()}


def _in_turn(fn: Callable[[Any, Any], Any], layers: Any, x: Any) -> Any:
    """The piece of each layer, neither merged nor taken out of the loop."""

    def first(total, layer):
        here, _ = lax.optimization_barrier((x, total))
        results = lax.optimization_barrier(fn(layer, here))
        return sum(y.ravel()[0].astype(total.dtype) for y in jax.tree.leaves(results))

    def turn(_, total):  # adds up at its end, lest each layer's sum be timed, too
        if isinstance(layers, list):
            return total + sum(first(total, layer) for layer in layers)
        firsts = lax.scan(lambda t, layer: (t, first(t, layer)), total, layers)[1]
        return total + jnp.sum(firsts)

    return lax.fori_loop(0, TURNS, turn, jnp.zeros(()))


def _weights(*names: str) -> Callable[[Any], Any]:
    """Returns what selects these weights of all layers."""

    def select(params):
        layers = params["layers"]
        if isinstance(layers, list):
            return [{name: layer[name] for name in names} for layer in layers]
        return {name: layers[name] for name in names}

    return select


def _mix(sizes: Sizes, own: Cache, x: jax.Array) -> jax.Array:
    """Attention to the cache of one layer, from a scan or from a list."""
    keys, values = (array.reshape(array.shape[-4:]) for array in own)
    query = x.reshape(-1, sizes.heads, sizes.head_size)
    return attend(query, keys, values, keys.shape[1] - 1)
