"""What channels that are taken out save: a forward pass, in multiples of the dense one.

    python -m benchmarks.shrink [--rounds 15]

Gated MLPs of a language model's size, and convolutions with batch normalisation,
without a quarter, half and three quarters of their channels. "left" is the part of the
operations that XLA counts in the smaller program; "time" is the part of the seconds,
both programs taking turns; "time / left" is 1 where time follows the operations.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxsparse as js
from benchmarks.timing import machine, medians, print_rows


def mlps(width: int = 576, hidden: int = 1536, layers: int = 4) -> tuple[Any, ...]:
    """SwiGLU layers on a residual stream of 512 tokens."""

    def fn(params, x):
        for layer in params:
            gate = jax.nn.silu(x @ layer["gate"])
            x = x + (gate * (x @ layer["up"])) @ layer["down"]
        return x

    shapes = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    params = [draw(shapes, seed) for seed in range(layers)]
    return fn, params, jnp.ones((512, width))


def convolutions(channels: int = 128, layers: int = 3) -> tuple[Any, ...]:
    """Convolutions of 3 x 3 with batch normalisation, of 16 images of 28 x 28."""

    def fn(params, x):
        for layer in params["layers"]:
            x = lax.conv_general_dilated(
                x,
                layer["kernel"],
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            x = (x - layer["mean"]) * lax.rsqrt(jnp.square(layer["variance"]) + 1e-5)
            x = jax.nn.relu(x * layer["scale"])
        return x.mean((1, 2)) @ params["head"]

    inputs = [3, *[channels] * (layers - 1)]
    vectors = dict.fromkeys(("mean", "variance", "scale"), (channels,))
    params = {
        "layers": [
            draw({"kernel": (3, 3, size, channels), **vectors}, seed)
            for seed, size in enumerate(inputs)
        ],
        "head": draw({"head": (channels, 10)}, layers)["head"],
    }
    return fn, params, jnp.ones((16, 28, 28, 3))


def draw(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, jax.Array]:
    """Random weights."""
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(size=s) / np.sqrt(np.prod(s[:-1])), jnp.float32)
        for name, s in shapes.items()
    }


def operations(fn: Callable, params: Any, x: jax.Array) -> float:
    """The operations that XLA counts in a program."""
    cost: Any = jax.jit(fn).lower(params, x).cost_analysis()
    return cost["flops"]


def rows(rounds: int = 15) -> Iterator[dict]:
    """One row for each network and sparsity."""
    for name, make in {"MLPs": mlps, "convolutions": convolutions}.items():
        fn, params, x = make()
        run = jax.jit(fn)
        for sparsity in (0.25, 0.5, 0.75):
            small = js.shrink_params(params, fn, (x,), sparsity=sparsity).params
            runs = {"dense": partial(run, params, x), "small": partial(run, small, x)}
            times, _ = medians(runs, rounds)
            left = operations(fn, small, x) / operations(fn, params, x)
            time = times["small"] / times["dense"]
            yield {
                "network": name,
                "sparsity": sparsity,
                "dense ms": 1e3 * times["dense"],
                "left": left,
                "time": time,
                "time / left": time / left,
            }


def main():
    """Prints one row for each network and sparsity."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    print(machine())
    print_rows(rows(args.rounds))


if __name__ == "__main__":
    main()
