"""Finding a mask, in multiples of the memory floor measured in the same run.

    python -m benchmarks.mask_search [--size 16384] [--json FILE]

The floor of a bool mask is a jitted `x > 0`: the weights read once and one bool each
written. The floor of a packed mask is the time that its bytes take, weights and bits,
at the best bandwidth seen in that and in a copy. As peers our own plain statements of
what other libraries do: the product with all patterns and an argmax, a double argsort,
`top_k` and one-hot. Medians of rounds in which all take turns, peers in rounds of their
own with a floor of their own.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp

import jaxsparse as js


PATTERNS = ((2, 4), (1, 4), (4, 8), (8, 16), (16, 32))


def grouped(x, m, axis):
    """The weights with groups as the last axis: `[..., m]`."""
    moved = jnp.moveaxis(x, axis, -1)
    return moved.reshape(*moved.shape[:-1], -1, m)


def ungrouped(mask, shape, axis):
    """A mask of groups in the weights' shape again."""
    moved = [n for i, n in enumerate(shape) if i != axis % len(shape)]
    return jnp.moveaxis(mask.reshape(*moved, shape[axis]), -1, axis)


def pattern_matmul(x, n, m, axis):
    """Scores every pattern by a matrix product and takes the best."""
    patterns = js.compute_valid_1d_patterns(m, n)
    groups = jnp.abs(grouped(x, m, axis))
    best = jnp.argmax(groups @ patterns.T.astype(x.dtype), axis=-1)
    return ungrouped(patterns.astype(bool)[best], x.shape, axis)


def double_argsort(x, n, m, axis):
    """The rank of each weight by sorting twice."""
    groups = jnp.abs(grouped(x, m, axis))
    rank = jnp.argsort(jnp.argsort(-groups, axis=-1), axis=-1)
    return ungrouped(rank < n, x.shape, axis)


def top_k(x, n, m, axis):
    """The places of the largest, as a sum of one-hot rows."""
    _, places = jax.lax.top_k(jnp.abs(grouped(x, m, axis)), n)
    return ungrouped(jax.nn.one_hot(places, m, dtype=bool).any(-2), x.shape, axis)


#: What others do.
PEERS = (pattern_matmul, double_argsort, top_k)


def jaxsparse(x, n, m, axis):
    """This library's search."""
    return js.create_asp_mask(x, (n, m), axis=axis)


def packed(x, n, m, axis):
    """This library's search for a packed mask."""
    rule = js.Rule(".*", (n, m), axis=axis % x.ndim, sizes=None)
    return js.create_masks({"kernel": x}, [rule], packed=True)["kernel"]


def copy(x):
    """Reads and writes every weight."""
    return x + jnp.ones((), x.dtype)


def seconds(fn, x, calls):
    """The time of one call, in a row of several."""
    start = time.perf_counter()
    result = [fn(x) for _ in range(calls)][-1]
    result.block_until_ready()
    return (time.perf_counter() - start) / calls


def measure(fns, x, rounds):
    """Median seconds of each, in turns, and what each took to compile and run first."""
    fns = {name: jax.jit(fn) for name, fn in fns.items()}
    first = {name: seconds(fn, x, 1) for name, fn in fns.items()}
    calls = {
        name: max(1, min(10, int(0.01 / seconds(fns[name], x, 1)))) for name in fns
    }
    times = {name: [] for name in fns}
    for _ in range(rounds):
        for name, fn in fns.items():
            times[name].append(seconds(fn, x, calls[name]))
    return {name: statistics.median(t) for name, t in times.items()}, first


def main():
    """Prints one row for each pattern, axis and dtype."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = 4096 if jax.default_backend() == "cpu" else 16384
    parser.add_argument("--size", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", action="store_true", help="measure them too, at 2:4")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    device = jax.devices()[0].device_kind
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(
        f"{device}, jax {jax.__version__}, Python {platform.python_version()}, {load}"
    )
    print(f"{args.size} x {args.size}, times in multiples of x > 0\n")
    print("dtype     pattern  axis  floor ms  jaxsparse  packed  first call s")
    rows = []
    for dtype in ("float32", "bfloat16", "float8_e4m3fn"):
        x = jax.random.normal(jax.random.key(0), (args.size, args.size)).astype(dtype)
        for n, m in PATTERNS:
            for axis in (-2, -1):
                options = {"n": n, "m": m, "axis": axis}
                bind = lambda fn, options=options: functools.partial(fn, **options)
                floor_of = {"floor": lambda x: x > 0}
                own = {
                    "copy": copy,
                    "jaxsparse": bind(jaxsparse),
                    "packed": bind(packed),
                }
                times, first = measure(floor_of | own, x, args.rounds)
                floor = times["floor"]
                bandwidth = max(
                    (x.nbytes + x.size) / floor, 2 * x.nbytes / times["copy"]
                )
                packed_floor = (x.nbytes + x.size / 8) / bandwidth
                ratios = {
                    "jaxsparse": times["jaxsparse"] / floor,
                    "packed": times["packed"] / packed_floor,
                }
                if args.peers and (n, m) == (2, 4) and dtype != "float8_e4m3fn":
                    # By themselves: their temporaries slow down whatever runs between.
                    peers = {f.__name__: bind(f) for f in PEERS}
                    slow, _ = measure(floor_of | peers, x, args.rounds)
                    ratios |= {name: slow[name] / slow["floor"] for name in peers}
                more = "  ".join(f"{k} {v:.0f}" for k, v in list(ratios.items())[2:])
                print(
                    f"{dtype[:8]:8}  {n}:{m:<5}  {axis:4}  {floor * 1e3:8.3f}  "
                    f"{ratios['jaxsparse']:9.2f}  {ratios['packed']:6.2f}  "
                    f"{first['jaxsparse']:12.1f}  {more}",
                    flush=True,
                )
                rows.append({"dtype": dtype, **options, "floor": floor, **ratios})
    if args.json:
        args.json.write_text(json.dumps({"device": device, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
