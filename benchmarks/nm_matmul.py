"""Products with compressed weights against the dense product, in bfloat16.

    python -m benchmarks.nm_matmul [--rounds N] [--weights 4096x4096 ...] [--rows 1 ...]
        [--pattern 8:16] [--torch] [--experts 8]

Each program multiplies by many weights in turn, more than a GPU's cache holds; the
times are of one product. "int8" and "fp8" are 2:4 weights of eight bits with bfloat16
activations; "xla" decompresses on the fly; "cuSPARSELt", with `--torch`, is PyTorch's,
with weights that it has compressed and an algorithm that it has searched. With
`--experts` the products are of a stack of weights, each by rows of its own; "in a loop"
multiplies by one after the other.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import jaxsparse as js
from benchmarks.timing import machine, medians, print_rows
from jaxsparse._compressed.kernel_choice import choose_expanding, choose_kernel


SHAPES = ((4096, 4096), (8192, 8192), (4096, 14336), (14336, 4096))
ROWS = (1, 16, 64, 256, 1024, 4096)
EIGHT = (("int8", "int8"), ("fp8", "float8_e4m3fn"))
WEIGHTS = 16  # of the smallest, compressed, six times an H100's cache


def rows(
    rounds: int = 5,
    shapes: tuple[tuple[int, int], ...] = SHAPES,
    many: tuple[int, ...] = ROWS,
    by_torch: bool = False,
    pattern: str = "2:4",
) -> Iterator[dict]:
    """Microseconds of the dense product, and how many times as fast the others are."""
    for k, out in shapes:
        keys = jax.random.split(jax.random.key(0), WEIGHTS)
        stored = [random_weight(key, k, out, pattern) for key in keys]
        dense = [js.decompress(w) for w in stored]
        quantized = {
            name: [quantize(w, dtype) for w in stored]
            for name, dtype in (EIGHT if pattern == "2:4" else ())
        }
        choose = choose_kernel if pattern == "2:4" else choose_expanding
        for count in many:
            x = jax.random.normal(keys[0], (count, k), jnp.bfloat16)
            loops = _loops(count)
            xla = partial(js.nm_matmul, implementation="xla")
            fns: dict[str, Callable[[], object]] = {
                "dense": partial(in_turn(jnp.dot, loops), x, dense),
                "jaxsparse": partial(in_turn(js.nm_matmul, loops), x, stored),
                "xla": partial(in_turn(xla, loops), x, stored),
            }
            for name, weights in quantized.items():
                fns[name] = partial(in_turn(js.nm_matmul, loops), x, weights)
            if by_torch and pattern == "2:4" and count % 8 == 0:
                by_rows = [w.T for w in dense]
                fns["cuSPARSELt"] = cusparselt(x, by_rows, loops)
            times, _ = medians(fns, rounds)
            one = {name: time / WEIGHTS / loops for name, time in times.items()}
            others = {name: one["dense"] / one[name] for name in fns if name != "dense"}
            yield {
                "weight": f"{k}x{out}",
                "rows": count,
                "dense us": one["dense"] * 1e6,
                **others,
                "kernel": "-".join(map(str, choose(count, k, out))),
            }


def stack_rows(
    rounds: int = 5,
    shapes: tuple[tuple[int, int], ...] = SHAPES[2:3],
    many: tuple[int, ...] = ROWS[:-1],
    experts: int = 8,
    pattern: str = "2:4",
) -> Iterator[dict]:
    """As `rows` for a stack of weights, each with rows of its own."""
    one_by_one = lambda x, w: lax.map(lambda pair: js.nm_matmul(*pair), (x, w))
    for k, out in shapes:
        keys = jax.random.split(jax.random.key(0), experts)
        random = partial(random_weight, k=k, out=out, pattern=pattern)
        stored = lax.map(random, keys)
        fns = {
            "dense": (partial(jnp.einsum, "erk,eko->ero"), js.decompress(stored)),
            "jaxsparse": (jax.vmap(js.nm_matmul), stored),
            "in a loop": (one_by_one, stored),
        }
        for name, dtype in EIGHT if pattern == "2:4" else ():
            quantized = lax.map(partial(quantize, dtype=dtype), stored)
            fns[name] = (jax.vmap(js.nm_matmul), quantized)
        choose = choose_kernel if pattern == "2:4" else choose_expanding
        for count in many:
            x = jax.random.normal(keys[0], (experts, count, k), jnp.bfloat16)
            loops = _loops(count)
            runs = {
                name: partial(in_turn(fn, loops), x, [weight])
                for name, (fn, weight) in fns.items()
            }
            times, _ = medians(runs, rounds)
            others = {n: times["dense"] / t for n, t in times.items() if n != "dense"}
            yield {
                "weights": f"{experts}x{k}x{out}",
                "rows": count,
                "dense us": times["dense"] / loops * 1e6,
                **others,
                "kernel": "-".join(map(str, choose(count, k, out, stack=experts))),
            }


@partial(jax.jit, static_argnames=("k", "out", "pattern"))
def random_weight(key: jax.Array, k: int, out: int, pattern: str) -> js.Compressed:
    """A compressed weight."""
    return js.compress(jax.random.normal(key, (k, out), jnp.bfloat16), pattern)


@partial(jax.jit, static_argnames="dtype")
def quantize(weight: js.Compressed, dtype: str) -> js.Compressed:
    """The weight in eight bits."""
    return js.quantize_compressed(weight, dtype)


def _loops(rows: int) -> int:
    """Many where a product is short, so that what a call costs does not count."""
    return max(4, min(128, 8192 // rows))


def in_turn(multiply: Callable, loops: int) -> Callable:
    """A program of products that neither merges them nor takes them out of its loop."""

    def once(_, total, x, weights):
        firsts = []
        for weight in weights:
            here, weight, total = lax.optimization_barrier((x, weight, total))
            product = lax.optimization_barrier(multiply(here, weight))
            firsts.append(product.ravel()[0].astype(jnp.float32))
        return total + sum(firsts)

    @jax.jit
    def run(x, weights):
        step = partial(once, x=x, weights=weights)
        return lax.fori_loop(0, loops, step, jnp.zeros(()))

    return run


def cusparselt(
    x: jax.Array, dense: list[jax.Array], loops: int
) -> Callable[[], object]:
    """The same by PyTorch, on the same arrays; the weights are `[out, k]`."""
    torch = import_module("torch")
    columns = _tensor(torch, x).t()
    weights = [torch._cslt_compress(_tensor(torch, w)) for w in dense]
    options = {"transpose_result": True}
    if x.dtype.itemsize == 1:
        options["out_dtype"] = torch.bfloat16
    found = torch._cslt_sparse_mm_search(weights[0], columns, **options)
    multiply = partial(torch._cslt_sparse_mm, alg_id=found, **options)

    # In a graph: each call of its own prepares on the host for a millisecond.
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for weight in weights:
            multiply(weight, columns)

    def run(_kept=(columns, weights)):  # the graph does not keep what it reads
        for _ in range(loops):
            graph.replay()
        torch.cuda.synchronize()

    return run


def _tensor(torch: Any, array: jax.Array) -> Any:
    """The array as a tensor, also of dtypes that DLPack has not."""
    if array.dtype.itemsize > 1:
        return torch.from_dlpack(array)
    tensor = torch.from_dlpack(lax.bitcast_convert_type(array, jnp.uint8))
    return tensor.view(getattr(torch, array.dtype.name))


def options(
    description: str | None,
    shapes: tuple[tuple[int, int], ...],
    many: tuple[int, ...],
) -> argparse.ArgumentParser:
    """The options of tables of products, with these weights and rows by default."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    sizes = lambda text: tuple(map(int, text.split("x")))
    parser.add_argument("--weights", type=sizes, nargs="+", default=shapes)
    parser.add_argument("--rows", type=int, nargs="+", default=many)
    parser.add_argument("--torch", action="store_true", help="PyTorch's product, too")
    return parser


def main():
    """Prints the table."""
    parser = options(__doc__, SHAPES, ROWS)
    parser.add_argument("--pattern", default="2:4", choices=("2:4", "4:8", "8:16"))
    parser.add_argument("--experts", type=int, help="how many weights are stacked")
    args = parser.parse_args()
    print(machine())
    sizes = args.rounds, tuple(args.weights), tuple(args.rows)
    if args.experts:
        print_rows(stack_rows(*sizes, args.experts, args.pattern))
    else:
        print_rows(rows(*sizes, args.torch, args.pattern))


if __name__ == "__main__":
    main()
