"""Products with compressed weights against the dense product, in bfloat16.

    python -m benchmarks.nm_matmul [--rounds N] [--weights 4096x4096 ...] [--rows 1 ...]
        [--pattern 8:16] [--activations] [--torch]

Each program multiplies by many weights in turn, more than a GPU's cache holds; the
times are of one product. "int8" and "fp8" are 2:4 weights of eight bits with bfloat16
activations; "xla" decompresses on the fly. With `--activations`, rows are quantized in
each product of "rows int8" and "rows fp8"; "dense int8" and "dense fp8" are XLA's
products of arrays that have eight bits already. "cuSPARSELt", with `--torch`, is
PyTorch's, with weights that it has compressed and an algorithm that it has searched.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import jaxsparse as js
from benchmarks.timing import machine, medians, print_rows
from jaxsparse._compressed import cuda_expand
from jaxsparse._compressed.kernel_choice import choose_kernel


SHAPES = ((4096, 4096), (8192, 8192), (4096, 14336), (14336, 4096))
ROWS = (1, 16, 64, 256, 1024, 4096)
EIGHT = (("int8", "int8"), ("fp8", "float8_e4m3fn"))
WEIGHTS = 16  # of the smallest, compressed, six times an H100's cache


def rows(
    rounds: int = 5,
    shapes: tuple[tuple[int, int], ...] = SHAPES,
    many: tuple[int, ...] = ROWS,
    by_torch: bool = False,
    activations: bool = False,
    pattern: str = "2:4",
) -> Iterator[dict]:
    """Microseconds of the dense product, and how many times as fast the others are."""
    for k, out in shapes:
        keys = jax.random.split(jax.random.key(0), WEIGHTS)
        stored = [_compressed(key, k, out, pattern) for key in keys]
        dense = [js.decompress(w) for w in stored]
        quantized = {
            name: [_quantized(w, dtype) for w in stored]
            for name, dtype in (EIGHT if pattern == "2:4" else ())
        }
        for count in many:
            x = jax.random.normal(keys[0], (count, k), jnp.bfloat16)
            loops = _loops(count)
            xla = partial(js.nm_matmul, implementation="xla")
            fns: dict[str, Callable[[], object]] = {
                "dense": partial(_in_turn(jnp.dot, loops), x, dense),
                "jaxsparse": partial(_in_turn(js.nm_matmul, loops), x, stored),
                "xla": partial(_in_turn(xla, loops), x, stored),
            }
            for name, weights in quantized.items():
                fns[name] = partial(_in_turn(js.nm_matmul, loops), x, weights)
            if activations and pattern == "2:4":
                fns |= _quantized_rows(x, quantized, loops)
            if by_torch and pattern == "2:4" and count % 8 == 0:
                fns["cuSPARSELt"] = _cusparselt(x, dense, loops)
                if activations:
                    fns |= _cusparselt_bytes(x, dense, loops)
            times, _ = medians(fns, rounds)
            one = {name: time / WEIGHTS / loops for name, time in times.items()}
            others = {name: one["dense"] / one[name] for name in fns if name != "dense"}
            yield {
                "weight": f"{k}x{out}",
                "rows": count,
                "dense us": one["dense"] * 1e6,
                **others,
                "kernel": _kernel(pattern, count, k, out),
            }


def _kernel(pattern: str, rows: int, k: int, out: int) -> str:
    if pattern == "2:4":
        return "-".join(map(str, choose_kernel(rows, k, out)))
    if rows > cuda_expand.MAX_ROWS:
        return "xla"
    return "-".join(map(str, ("expand", *cuda_expand.choose_tile(rows, k, out))))


@partial(jax.jit, static_argnums=(1, 2, 3))
def _compressed(key: jax.Array, k: int, out: int, pattern: str) -> js.Compressed:
    return js.compress(jax.random.normal(key, (k, out), jnp.bfloat16), pattern)


@partial(jax.jit, static_argnums=1)
def _quantized(weight: js.Compressed, dtype: str) -> js.Compressed:
    return js.quantize_compressed(weight, dtype)


def _loops(rows: int) -> int:
    """Many where a product is short, so that what a call costs does not count."""
    return max(4, min(128, 8192 // rows))


def _in_turn(multiply: Callable, loops: int, dtype: Any = None) -> Callable:
    """A program of products that neither merges them nor takes them out of its loop."""

    def once(_, total, x, weights):
        firsts = []
        for weight in weights:
            here, weight, total = lax.optimization_barrier((x, weight, total))
            product = lax.optimization_barrier(multiply(here, weight))
            firsts.append(product[0, 0])
        return total + sum(firsts)

    @jax.jit
    def run(x, weights):
        step = partial(once, x=x, weights=weights)
        return lax.fori_loop(0, loops, step, jnp.zeros((), dtype or x.dtype))

    return run


def _quantized_rows(
    x: jax.Array, quantized: dict[str, list[js.Compressed]], loops: int
) -> dict[str, Callable[[], object]]:
    """Products of quantized rows, and XLA's of dense arrays of eight bits.

    XLA's float8 products are those of cuBLASLt, which wants both operands with
    contiguous inputs.
    """
    fns = {}
    rows = partial(js.nm_matmul, quantize_activations=True)
    contract_last = (((1,), (1,)), ((), ()))
    for name, dtype in EIGHT:
        fns[f"rows {name}"] = partial(_in_turn(rows, loops), x, quantized[name])
        out = jnp.int32 if name == "int8" else x.dtype
        multiply = partial(
            lax.dot_general,
            dimension_numbers=contract_last,
            preferred_element_type=out,
        )
        dense = [_dense_bytes(w) for w in quantized[name]]
        small = jnp.round(x * 40).astype(dtype)
        fns[f"dense {name}"] = partial(_in_turn(multiply, loops, out), small, dense)
    return fns


@jax.jit
def _dense_bytes(weight: js.Compressed) -> jax.Array:
    """The values with their zeros, `[out, k]`."""
    values = replace(weight, scales=None, quantized_from=None)
    return js.decompress(values).T


def _cusparselt(
    x: jax.Array, dense: list[jax.Array], loops: int
) -> Callable[[], object]:
    """The same by PyTorch, on the same arrays."""
    torch = import_module("torch")
    columns = torch.from_dlpack(x).t()
    weights = [torch.from_dlpack(w).t().contiguous() for w in dense]
    return _cusparselt_in_turn(columns, weights, loops, x.dtype.name)


def _cusparselt_bytes(
    x: jax.Array, dense: list[jax.Array], loops: int
) -> dict[str, Callable[[], object]]:
    """PyTorch's products of eight bits, with results in bfloat16."""
    torch = import_module("torch")
    fns = {}
    for name, dtype in (("int8", torch.int8), ("fp8", torch.float8_e4m3fn)):
        small = lambda x, dtype=dtype: (x * 40).round().clamp(-127, 127).to(dtype)
        columns = small(torch.from_dlpack(x)).t()
        weights = [small(torch.from_dlpack(w)).t().contiguous() for w in dense]
        run = _cusparselt_in_turn(columns, weights, loops, "bfloat16")
        fns[f"cuSPARSELt {name}"] = run
    return fns


def _cusparselt_in_turn(
    columns: Any, dense: list[Any], loops: int, result: str
) -> Callable[[], object]:
    torch = import_module("torch")
    options = {"transpose_result": True, "out_dtype": getattr(torch, result)}
    weights = [torch._cslt_compress(w) for w in dense]
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


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    sizes = lambda text: tuple(map(int, text.split("x")))
    parser.add_argument("--weights", type=sizes, nargs="+", default=SHAPES)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--pattern", choices=("2:4", "4:8", "8:16"), default="2:4")
    parser.add_argument("--torch", action="store_true", help="PyTorch's product, too")
    parser.add_argument(
        "--activations", action="store_true", help="products of quantized rows, too"
    )
    args = parser.parse_args()
    print(machine())
    shapes, many = tuple(args.weights), tuple(args.rows)
    print_rows(
        rows(args.rounds, shapes, many, args.torch, args.activations, args.pattern)
    )


if __name__ == "__main__":
    main()
