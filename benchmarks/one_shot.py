"""A language model pruned without training: by which method, and permuted or not.

    PYTHONPATH=examples python -m benchmarks.one_shot --text perl-doc.txt

Perplexities of SmolLM2-135M in two tables, of methods (A) and of permutations (B): each
the median over draws of the calibration pieces, then the lowest and the highest. It is
calibrated on the first half of the King James Bible (KJV), or on as many tokens, half
from CPython's language reference, and evaluated on the second halves and on `--text`
files. CPython's half has less than three draws, so these overlap.

The first seconds of a method include the compilation of what no row before it has
compiled in the same process; later ones include none. Second moments and permutation
are timed by themselves. Memory is the most so far, when a method ran first. Each
measurement is written to `--out` at once, and what is there is not measured again, so
that a run that was stopped goes on. JAX_COMPILATION_CACHE_DIR helps it to.
"""

import argparse
import json
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import jax
from smollm import peak_memory

from benchmarks.one_shot_methods import (
    MOMENTS,
    PERMUTATION,
    RANDOM,
    Model,
    Way,
    draw_batches,
    evaluate,
    load_model,
    load_texts,
    ways,
)
from benchmarks.one_shot_tables import (
    CALIBRATIONS,
    Key,
    Measurement,
    median,
    spread,
    table,
)
from benchmarks.timing import machine


SHARED = (MOMENTS, PERMUTATION)
DENSE = ("", "dense", "", 0)
METHODS = (
    "Wanda",
    "SparseGPT, shrinkage 0",
    "SparseGPT",
    "SparseGPT, shrinkage auto",
    "SparseGPT, refined",
    "ADMM",
    "SparseGPT, in order",
    "SparseGPT, in order, refined",
    "SparseGPT, in order, reconstructed",
)
PERMUTED = ("Wanda", "SparseGPT, in order")
ORDERS = ("permuted", *(f"at random {i + 1}" for i in range(RANDOM)))


def wanted(args: argparse.Namespace, calibrated: str) -> list[str]:
    """The methods to run on these texts."""
    in_a = [name for name in METHODS if name in args.methods]
    in_b = [name for name in PERMUTED if name in args.methods]
    names = in_a if "A" in args.tables else []
    if "B" in args.tables and calibrated == "both":
        names += [*in_b, *(f"{name}, {order}" for name in in_b for order in ORDERS)]
    return list(dict.fromkeys(names))


def read(file: Path, settings: dict[str, Any]) -> list[Measurement]:
    """What an earlier run with the same settings has measured."""
    if not file.exists():
        return []
    found = json.loads(file.read_text())
    if found["settings"] != settings:
        raise SystemExit(
            f"{file} was measured with {found['settings']}, not {settings}: move it, "
            "or write to another file with --out"
        )
    return [Measurement(**each) for each in found["measured"]]


def write(file: Path, settings: dict[str, Any], measured: list[Measurement]) -> None:
    """Writes all that was measured; a run that is stopped here leaves the old file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    found = {
        "machine": machine(),
        "settings": settings,
        "measured": [each._asdict() for each in measured],
    }
    new.write_text(json.dumps(found, indent=1) + "\n")
    new.replace(file)


def jobs(
    args: argparse.Namespace, model: Model, first: dict[str, Any], done: set[Key]
) -> Iterator[tuple[Key, Way]]:
    """What is to be measured, draw after draw, so that all rows have figures soon."""
    if DENSE not in done:
        yield DENSE, Way(lambda: model.dense)
    for draw, calibrated, pattern in product(
        range(args.draws), CALIBRATIONS, args.pattern
    ):
        names = [
            name
            for name in wanted(args, calibrated)
            if (pattern, name, calibrated, draw) not in done
        ]
        if names:
            chosen = CALIBRATIONS[calibrated]
            batches = draw_batches(first, chosen, 2 * args.pieces, draw)
            for name, way in ways(model, pattern, batches, names).items():
                yield (pattern, name, calibrated, draw), way


def measure(args: argparse.Namespace, settings: dict[str, Any]) -> list[Measurement]:
    """Measures what is missing, and returns all."""
    start, began = time.perf_counter(), set()
    measured = {each.key: each for each in read(args.out, settings)}
    texts, model = load_texts(args.eval_tokens, args.text), load_model(args.layers)
    for key, way in jobs(args, model, texts.first, set(measured)):
        if time.perf_counter() - start > args.seconds:
            print("out of time: the same command goes on from here", flush=True)
            break
        before = time.perf_counter()
        result = jax.block_until_ready(way.run())
        seconds, gib = time.perf_counter() - before, peak_memory()
        found = {} if key[1] in SHARED else evaluate(model, result, texts.held_out)
        first = key[:2] not in began
        began.add(key[:2])
        measured.setdefault(key, Measurement(*key, found, seconds, first, gib))
        write(args.out, settings, list(measured.values()))
        figures = ", ".join(f"{text} {x:.2f}" for text, x in found.items())
        name = " / ".join(str(x) for x in key if x != "")
        print(f"{name}: {figures} ({seconds:.1f} s, {gib:.2f} GiB)", flush=True)
    return list(measured.values())


def print_tables(args: argparse.Namespace, measured: list[Measurement]) -> None:
    """Prints the medians of each table and pattern, then the lowest and highest."""
    labels = {name: [name] for name in ("dense", *SHARED, *METHODS)}
    permuted = {"dense": ["dense"], PERMUTATION: [PERMUTATION]}
    for name in PERMUTED:
        permuted[name] = [name]
        permuted[f"{name}, permuted"] = [f"{name}, permuted"]
        drawn = [f"{name}, {order}" for order in ORDERS[1:]]
        permuted[f"{name}, {RANDOM} random permutations"] = drawn
    tables = {"A": ([*CALIBRATIONS], labels), "B": (["both"], permuted)}
    for pattern in args.pattern:
        for letter in args.tables:
            for cell in (median, spread):
                print(f"\n{table(pattern, *tables[letter], measured, cell)}")


def main() -> None:
    """Measures, and prints the tables of all that has been measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tables", nargs="+", choices=["A", "B"], default=["A", "B"])
    add("--methods", nargs="+", choices=METHODS, default=METHODS, metavar="NAME")
    add("--pattern", nargs="+", default=["2:4"])
    add("--draws", type=int, default=3, help="of calibration pieces")
    add("--pieces", type=int, default=64, help="from each text, of 512 tokens")
    add("--eval-tokens", type=int, default=56_210, help="of each text, at least")
    add("--text", nargs="+", type=Path, default=[], metavar="FILE", help="to evaluate")
    add("--layers", type=int, help="only the first blocks of the model")
    add("--seconds", type=float, default=float("inf"), help="begin nothing after that")
    add("--out", type=Path, default=Path("out/one_shot.json"), metavar="FILE")
    args = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", "highest")
    print(machine(), flush=True)
    settings = {
        "pieces": args.pieces,
        "tokens": args.eval_tokens,
        "layers": args.layers,
        "files": [file.name for file in args.text],
    }
    print_tables(args, measure(args, settings))


if __name__ == "__main__":
    main()
