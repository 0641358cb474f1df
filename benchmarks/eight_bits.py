"""Products of eight bits by eight bits, dense and 2:4, against dense bfloat16.

   python -m benchmarks.eight_bits [--rounds N] [--weights 4096x14336 ...] [--rows 64]
        [--torch]

"dense us" is the time of the dense product in bfloat16; the other columns say how many
times as fast others are. "rows" takes bfloat16 rows and quantizes them; up to 16 of
float8 are then multiplied by the kernel of weights alone. "kernel" takes rows in eight
bits, as do "dense" in eight bits and "cuSPARSELt", with `--torch`: PyTorch's product by
an algorithm that it has searched. Programs multiply by many weights in turn, more than
a GPU's cache holds; the times are of one product.

The second table has the microseconds of quantizing rows alone, by the kernel and by
XLA. "floor us" is the time of reading them in bfloat16 and writing eight bits, at the
bandwidth of a copy in the same run; few rows are in a GPU's cache.
"""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

import jaxsparse as js
from benchmarks.decode_models import copy_bandwidth
from benchmarks.nm_matmul import cusparselt, in_turn, options, quantize, random_weight
from benchmarks.timing import machine, medians, print_rows
from jaxsparse._compressed.cuda_matmul_bytes import multiply_rows
from jaxsparse._compressed.cuda_quantize_rows import cuda_quantize_rows
from jaxsparse._compressed.quantized_matmul import quantize_rows


SHAPES = ((4096, 14336), (14336, 4096), (8192, 8192), (4096, 4096))
ROWS = (16, 64, 256, 1024, 4096)
FORMATS = {"fp8": "float8_e4m3fn", "int8": "int8"}
WEIGHTS = 6


def rows(
    rounds: int = 5,
    shapes: tuple[tuple[int, int], ...] = SHAPES,
    many: tuple[int, ...] = ROWS,
    by_torch: bool = False,
) -> Iterator[dict]:
    """Microseconds of the product in bfloat16, and the others' speed beside it."""
    for k, out in shapes:
        keys = jax.random.split(jax.random.key(0), WEIGHTS)
        stored = [random_weight(key, k, out, "2:4") for key in keys]
        dense = [js.decompress(w) for w in stored]
        quantized = {
            n: [quantize(w, dtype) for w in stored] for n, dtype in FORMATS.items()
        }
        # Dense products of eight bits want each output's weights in a row.
        narrow = {n: [_values(w) for w in weights] for n, weights in quantized.items()}
        for count in many:
            x = jax.random.normal(keys[0], (count, k), jnp.bfloat16)
            loops = max(2, min(64, 4096 // count))
            fns = {"dense": partial(in_turn(jnp.dot, loops), x, dense)}
            for name, weights in quantized.items():
                own = _products(name, x, weights, narrow[name], loops, by_torch)
                fns |= {f"{name} {kind}": fn for kind, fn in own.items()}
            times, _ = medians(fns, rounds)
            one = {name: time / WEIGHTS / loops for name, time in times.items()}
            others = {n: one["dense"] / time for n, time in one.items() if n != "dense"}
            yield {
                "weight": f"{k}x{out}",
                "rows": count,
                "dense us": one["dense"] * 1e6,
                **others,
            }


def _products(
    name: str,
    x: jax.Array,
    weights: list[js.Compressed],
    dense: list[jax.Array],
    loops: int,
    by_torch: bool,
) -> dict[str, Callable[[], object]]:
    """The products of one format."""
    x8, scales = jax.jit(quantize_rows, static_argnums=1)(x, FORMATS[name])
    by_kernel = lambda x8, w: multiply_rows(x8, scales, [w], x.dtype)[0]
    quantizing = partial(js.nm_matmul, quantize_activations=True)
    wide = jnp.bfloat16 if name == "fp8" else jnp.int32
    by_rows = partial(
        lax.dot_general,
        dimension_numbers=(((1,), (1,)), ((), ())),
        preferred_element_type=wide,
    )
    fns: dict[str, Callable[[], object]] = {
        "rows": partial(in_turn(quantizing, loops), x, weights),
        "kernel": partial(in_turn(by_kernel, loops), x8, weights),
        "dense": partial(in_turn(by_rows, loops), x8, dense),
    }
    if by_torch:
        fns["cuSPARSELt"] = cusparselt(x8, dense, loops)
    return fns


def quantizing_rows(
    rounds: int, shapes: tuple[tuple[int, int], ...], many: tuple[int, ...]
) -> Iterator[dict]:
    """Microseconds of quantizing rows, beside their bytes."""
    bandwidth = copy_bandwidth(rounds)
    for k in dict.fromkeys(k for k, _ in shapes):
        for count in many:
            keys = jax.random.split(jax.random.key(1), WEIGHTS)
            xs = [jax.random.normal(key, (count, k), jnp.bfloat16) for key in keys]
            loops = max(8, min(256, 16384 // count))
            own = {
                f"{name} {kind}": lambda _, x, fn=fn, dtype=dtype: fn(x, dtype)[0]
                for name, dtype in FORMATS.items()
                for kind, fn in (("us", cuda_quantize_rows), ("xla us", quantize_rows))
            }
            fns = {
                name: partial(in_turn(fn, loops), None, xs) for name, fn in own.items()
            }
            times, _ = medians(fns, rounds)
            each = {name: t / WEIGHTS / loops * 1e6 for name, t in times.items()}
            floor = 3e6 * count * k / bandwidth
            yield {"k": k, "rows": count, "floor us": floor, **each}


@jax.jit
def _values(weight: js.Compressed) -> jax.Array:
    """The eight bits of a weight with its zeros, transposed."""
    return js.decompress(
        js.Compressed(weight.values, weight.indices, weight.pattern, weight.axis)
    ).T


def main():
    """Prints the table."""
    args = options(__doc__, SHAPES, ROWS).parse_args()
    print(machine())
    shapes, many = tuple(args.weights), tuple(args.rows)
    print_rows(rows(args.rounds, shapes, many, args.torch))
    print_rows(quantizing_rows(args.rounds, shapes, many))


if __name__ == "__main__":
    main()
