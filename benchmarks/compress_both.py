"""A weight to its 2:4 forms for both products, in multiples of a copy of its bytes.

    python -m benchmarks.compress_both [--shape 4096x14336] [--rounds 5] [--xla]

The bytes are the weight, read, and a given mask, read, or a mask that is found,
written; and all values in bfloat16 and indices, written. "copy" reads and writes as
many in the same rounds; "xla", with `--xla`, does the same work by XLA. "compress" is
`compress` by magnitude, which writes one form.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

import jaxsparse as js
from benchmarks.timing import machine, medians, print_rows
from jaxsparse._compressed import compress_both as forms


PATTERN = js.NM(2, 4, transposable=True)
STORED = js.NM(2, 4)
VALUES = "bfloat16"
TIMES = 20  # in each program, so that what a call costs does not count


def rows(
    shape: tuple[int, int] = (4096, 14336), rounds: int = 5, xla: bool = False
) -> Iterator[dict]:
    """One row for each dtype of the weight and each work."""
    for dtype in ("bfloat16", "float32"):
        w = jax.random.normal(jax.random.key(0), shape).astype(dtype)
        mask = forms.compress_best(w, PATTERN, VALUES).mask
        kept = js.mask_params({"w": w}, {"w": mask})["w"]
        both = partial(forms.compress_both, pattern=PATTERN, dtype=VALUES)
        by_xla = partial(
            forms._both_by_xla, pattern=STORED, dtype=VALUES, axes=(-2, -1)
        )
        best = {"pattern": PATTERN, "dtype": VALUES, "axis": -2}
        works: dict[str, tuple[Callable, Callable | None, tuple]] = {
            "given mask": (both, by_xla, (w, mask)),
            "zeros": (both, by_xla, (kept, None)),
            "best mask": (
                partial(forms.compress_best, **best),
                partial(forms._best_by_xla, **best),
                (w,),
            ),
        }
        if dtype == VALUES:
            works["compress"] = (js.compress, None, (w,))
        for name, (ours, by_xla, arrays) in works.items():
            other = by_xla if xla else None
            yield {"dtype": dtype, "work": name} | _row(ours, other, arrays, rounds)


def _row(
    ours: Callable, by_xla: Callable | None, arrays: tuple, rounds: int
) -> dict[str, float]:
    moved = jax.tree.leaves((arrays, jax.eval_shape(ours, *arrays)))
    size = sum(x.size * x.dtype.itemsize for x in moved)
    half = jnp.ones(size // 8, jnp.uint32)
    fns = {
        "jaxsparse": partial(_repeated(ours), arrays),
        "copy": partial(_repeated(lambda x: x + 1), (half,)),
    }
    if by_xla is not None:
        fns["xla"] = partial(_repeated(by_xla), arrays)
    times, _ = medians(fns, rounds)
    row = {f"{name} us": times[name] / TIMES * 1e6 for name in ("jaxsparse", "copy")}
    ratios = {"of copy": times["jaxsparse"] / times["copy"]}
    if by_xla is not None:
        ratios["xla of copy"] = times["xla"] / times["copy"]
    return row | ratios


def _repeated(fn: Callable) -> Callable[[tuple], jax.Array]:
    """A program that does a work several times and neither merges nor skips it."""

    def once(_, total, arrays):
        here, total = lax.optimization_barrier((arrays, total))
        results = lax.optimization_barrier(jax.tree.leaves(fn(*here)))
        return total + sum(x.reshape(-1)[0].astype(jnp.float32) for x in results)

    @jax.jit
    def run(arrays):
        step = partial(once, arrays=arrays)
        return lax.fori_loop(0, TIMES, step, jnp.zeros((), jnp.float32))

    return run


def main():
    """Prints one row for each dtype and work."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = lambda text: tuple(map(int, text.split("x")))
    parser.add_argument("--shape", type=sizes, default=(4096, 14336))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--xla", action="store_true", help="measure XLA's, too")
    args = parser.parse_args()
    print(machine())
    print_rows(rows(args.shape, args.rounds, args.xla))


if __name__ == "__main__":
    main()
