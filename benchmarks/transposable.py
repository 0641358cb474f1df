"""Transposable masks: time in multiples of a jitted `x > 0`, and what they keep.

    python -m benchmarks.transposable [--size 8192] [--rounds 7]

A float32 matrix of 8192 x 8192 on a GPU, 1024 x 1024 elsewhere. As a peer for blocks of
four our own plain statement of what others do: a product of the blocks with all valid
patterns, and the largest of it. "kept" is the share of the sum of magnitudes.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from itertools import combinations, product

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse as js
from benchmarks.timing import machine, medians, print_rows


PATTERNS = ((2, 4), (1, 4), (4, 8), (8, 16), (16, 32))


@partial(jax.jit, static_argnums=(1, 2))
def by_product(x: jax.Array, n: int, m: int) -> jax.Array:
    """A product with all valid patterns of a block."""
    rows = [[int(j in kept) for j in range(m)] for kept in combinations(range(m), n)]
    tried = np.array(list(product(rows, repeat=m)), np.float32)
    patterns = tried[(tried.sum(1) == n).all(1)].reshape(-1, m * m)
    height, width = x.shape
    blocks = jnp.abs(x).reshape(height // m, m, width // m, m).swapaxes(1, 2)
    sums = blocks.reshape(-1, m * m) @ patterns.T
    best = jnp.asarray(patterns, bool)[jnp.argmax(sums, 1)]
    best = best.reshape(height // m, width // m, m, m).swapaxes(1, 2)
    return best.reshape(x.shape)


def rows(size: int | None = None, rounds: int = 7) -> Iterator[dict]:
    """One row for each pattern."""
    size = size or (8192 if jax.default_backend() == "gpu" else 1024)
    x = jax.random.normal(jax.random.key(0), (size, size))
    positive = jax.jit(lambda x: x > 0)
    for n, m in PATTERNS:
        pattern = js.NM(n, m, transposable=True)
        rules = [js.Rule(".*", pattern, axis=0, sizes=None)]
        plan = js.plan_sparsity({"w": x}, rules)
        fns = {
            "floor": lambda: positive(x),
            "jaxsparse": lambda plan=plan: js.create_masks({"w": x}, plan),
        }
        if m == 4:
            fns["product"] = lambda n=n, m=m: by_product(x, n, m)
        times, first = medians(fns, rounds)
        mask = js.create_masks({"w": x}, plan)["w"]
        kept = jnp.sum(jnp.abs(x), where=mask) / jnp.sum(jnp.abs(x))
        yield {
            "pattern": str(pattern),
            "size": size,
            "floor ms": times["floor"] * 1e3,
            "ms": times["jaxsparse"] * 1e3,
            "jaxsparse": times["jaxsparse"] / times["floor"],
            "ns a weight": times["jaxsparse"] / x.size * 1e9,
            "kept": float(kept),
            "first call s": first["jaxsparse"],
            "product": times["product"] / times["floor"] if m == 4 else "",
        }


def main():
    """Prints one row for each pattern."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    print(machine())
    print_rows(rows(args.size, args.rounds))


if __name__ == "__main__":
    main()
