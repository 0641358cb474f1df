"""What masks cost before the first step: trees of many small leaves.

    python -m benchmarks.many_leaves [--leaves 500 2000]

Kernels of 64 x 64 under AdamW. Each row is `init` under `jax.eval_shape`, tracing and
lowering of a step, or compiling it: the seconds of the plain optimizer, and those of
`wrap_optimizer` (fixed masks, and with a schedule) in multiples of them.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxsparse as js
from benchmarks.timing import machine, print_rows


def transforms() -> dict[str, optax.GradientTransformation]:
    """AdamW by itself and wrapped."""
    inner, schedule = optax.adamw(1e-3), js.cubic_schedule(0, 100)
    return {
        "plain": inner,
        "wrapped": js.wrap_optimizer(inner, "2:4"),
        "scheduled": js.wrap_optimizer(inner, "2:4", schedule=schedule, every=10),
    }


def stages(tx: optax.GradientTransformation, leaves: int) -> dict[str, float]:
    """Seconds of each stage, of a process that has done nothing like it before."""
    jax.clear_caches()
    kernel = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    params = {f"layer_{i}": {"kernel": kernel} for i in range(leaves)}

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    seconds: dict[str, float] = {}

    def timed(name: str, fn: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = fn()
        seconds[name] = time.perf_counter() - start
        return result

    state = timed("init", lambda: jax.eval_shape(tx.init, params))
    lower = jax.jit(step, donate_argnums=(0, 1)).lower
    lowered = timed("trace", lambda: lower(params, state, params))
    timed("compile", lowered.compile)
    return seconds


def rows(counts: tuple[int, ...] = (500, 2000)) -> Iterator[dict]:
    """One row for each number of leaves and stage."""
    for leaves in counts:
        seconds = {name: stages(tx, leaves) for name, tx in transforms().items()}
        for stage, plain in seconds["plain"].items():
            yield {
                "leaves": leaves,
                "stage": stage,
                "plain s": plain,
                "wrapped": seconds["wrapped"][stage] / plain,
                "scheduled": seconds["scheduled"][stage] / plain,
            }


def main():
    """Prints one row for each number of leaves and stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--leaves", type=int, nargs="+", default=[500, 2000])
    args = parser.parse_args()
    print(machine())
    print_rows(rows(tuple(args.leaves)))


if __name__ == "__main__":
    main()
