"""How much faster is a whole model? A decoder of Llama 3 8B's shapes, dense and 2:4.

    python -m benchmarks.decode [--layers 32] [--batches 1 4 16 64] [--scan]
        [--formats bfloat16 int8 int8+activations float8_e4m3fn] [--quick]

Random weights, masked once; "dense" multiplies the zeros, the other formats do not
store them. A program runs all steps, so that what a call costs does not count. "floor"
is the time of reading all weights and the cache once, at the bandwidth of a copy in the
same run. "equal" counts the steps whose likeliest token is the dense model's, all going
on with the dense model's tokens; "differ" is how far the last logits are from the dense
model's, relative to their norm; another run of the dense model may differ, too. The
last table has the pieces of a step, each timed alone. `--quick` takes seconds on a CPU,
in float32.
"""

import argparse
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.decode_models import (
    Model,
    compile_program,
    copy_bandwidth,
    make_models,
    nbytes,
)
from benchmarks.decode_pieces import piece_rows
from benchmarks.llama import Sizes, decode, prefill, random_cache
from benchmarks.timing import machine, medians, print_rows


QUICK = {
    **{"layers": 2, "width": 64, "hidden": 128, "vocabulary": 256},
    **{"heads": 4, "kv_heads": 2, "head_size": 16, "dtype": "float32"},
    **{"prompts": (16,), "batches": (1, 4), "positions": 32, "steps": 16, "rounds": 3},
}


def prefill_rows(
    models: Mapping[str, Model], length: int, sizes: Sizes, rounds: int
) -> Iterator[dict]:
    """The time to the first token after a prompt, in each format."""
    shape = (1, length)
    tokens = jax.random.randint(jax.random.key(1), shape, 0, sizes.vocabulary)
    fn = partial(prefill, size=sizes.head_size)
    programs = {name: compile_program(m, fn, tokens) for name, m in models.items()}
    runs = {name: partial(p.run, tokens) for name, p in programs.items()}
    times, _ = medians(runs, rounds)
    expected = runs["dense"]()[0]
    for name, model in models.items():
        yield {
            "prompt": length,
            "weights": name,
            "first token ms": times[name] * 1e3,
            "tokens/s": length / times[name],
            "speed-up": times["dense"] / times[name],
            "differ": _difference(runs[name]()[0], expected),
            "weights GiB": nbytes(model.params) / 2**30,
            "peak GiB": programs[name].peak,
        }


def decode_rows(
    models: Mapping[str, Model],
    batch: int,
    sizes: Sizes,
    positions: int,
    steps: int,
    bandwidth: float,
    rounds: int,
) -> Iterator[dict]:
    """The time of a step in each format; the last step fills the cache."""
    params = models["dense"].params
    key, unrolled = jax.random.key(2), isinstance(params["layers"], list)
    dtype = params["head"].dtype
    cache = random_cache(key, sizes, batch, positions, dtype, unrolled)
    tokens = jax.random.randint(key, (batch,), 0, sizes.vocabulary)
    start = jnp.asarray(positions - steps)
    fn = partial(decode, size=sizes.head_size)
    args = (cache, tokens, start, jnp.full((steps, batch), -1))
    programs = {name: compile_program(m, fn, *args) for name, m in models.items()}
    expected, logits = programs["dense"].run(*args)
    args = (*args[:-1], expected)
    runs = {name: partial(p.run, *args) for name, p in programs.items()}
    times, _ = medians(runs, rounds)
    for name, model in models.items():
        table = model.params["embedding"]  # a step reads one row for each sequence
        floor = (nbytes(model.params, cache) - table.nbytes) / bandwidth
        step = times[name] / steps
        chosen, its_logits = runs[name]()
        yield {
            "batch": batch,
            "weights": name,
            "ms a step": step * 1e3,
            "tokens/s": batch / step,
            "speed-up": times["dense"] / times[name],
            "floor ms": floor * 1e3,
            "floor/step": floor / step,
            "equal": f"{int((chosen == expected).sum())}/{expected.size}",
            "differ": _difference(its_logits, logits),
            "weights GiB": nbytes(model.params) / 2**30,
            "cache GiB": nbytes(cache) / 2**30,
            "peak GiB": programs[name].peak,
        }


def _difference(logits: jax.Array, expected: jax.Array) -> float:
    return float(jnp.linalg.norm(logits - expected) / jnp.linalg.norm(expected))


def check_agreement(rows: list[dict], dtype: str, layers: int) -> None:
    """Raises unless formats that round no weight agree with the dense model.

    Some twenty values of each layer are rounded to the dtype; the errors add up like
    the steps of a random walk. In float32 the tokens are equal, too.
    """
    bound = float(jnp.finfo(dtype).eps) * (20 * layers) ** 0.5
    for row in rows:
        if row["weights"] != dtype:
            continue
        if row["differ"] > bound:
            raise AssertionError(f"logits differ by more than {bound:.2g}: {row}")
        equal, total = row["equal"].split("/")
        if dtype == "float32" and equal != total:
            raise AssertionError(f"tokens differ: {row}")


def run(args: argparse.Namespace) -> None:
    """Prints the tables."""
    sizes = Sizes(**{name: getattr(args, name) for name in Sizes._fields})
    models = make_models(
        sizes,
        args.dtype,
        args.formats or (args.dtype,),
        unrolled=not args.scan,
    )
    bandwidth = copy_bandwidth(args.rounds)
    print(f"{'stacked' if args.scan else 'a list of'} layers: {sizes}")
    print(f"a copy reads and writes {bandwidth / 1e9:.0f} GB/s")

    print("\nprefill, one prompt")
    over_prompts = (
        prefill_rows(models, length, sizes, args.rounds) for length in args.prompts
    )
    print_rows(row for rows in over_prompts for row in rows)

    settings: dict[str, Any] = {
        "sizes": sizes,
        "positions": args.positions,
        "bandwidth": bandwidth,
        "rounds": args.rounds,
    }
    print(f"\ndecoding with a cache of {args.positions} positions")
    over_batches = (
        decode_rows(models, batch, steps=args.steps, **settings)
        for batch in args.batches
    )
    decoded = print_rows(row for rows in over_batches for row in rows)
    check_agreement(decoded, args.dtype, sizes.layers)

    print("\npieces of a step in all layers, ms, and the floors of their bytes")
    for batch in args.pieces:
        own = [row for row in decoded if row["batch"] == batch]
        steps = {row["weights"]: row["ms a step"] for row in own}
        print_rows(piece_rows(models, steps, batch, **settings))


def main():
    """Reads the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, size in Sizes()._asdict().items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--formats", nargs="+", help="of the weights: by default dtype")
    parser.add_argument("--scan", action="store_true", help="over stacked layers")
    parser.add_argument("--prompts", type=int, nargs="*", default=(512, 2048))
    parser.add_argument("--batches", type=int, nargs="*", default=(1, 4, 16, 64))
    parser.add_argument("--pieces", type=int, nargs="*", help="batches: the first one")
    parser.add_argument("--positions", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny, in seconds")
    args = parser.parse_args()
    if args.quick:
        args = argparse.Namespace(**vars(args) | QUICK)
    if args.pieces is None:
        args.pieces = args.batches[:1]
    if not set(args.pieces) <= set(args.batches):
        parser.error("--pieces takes some of the --batches")
    print(machine())
    run(args)


if __name__ == "__main__":
    main()
