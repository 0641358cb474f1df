"""What all benchmarks share: medians of rounds in which all take turns, and tables."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping

import jax


def seconds(fn: Callable[[], object], calls: int = 1) -> float:
    """The time of one call, in a row of several."""
    start = time.perf_counter()
    jax.block_until_ready([fn() for _ in range(calls)][-1])
    return (time.perf_counter() - start) / calls


def medians(
    fns: Mapping[str, Callable[[], object]], rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of each, in turns, and what each took the first time."""
    first = {name: seconds(fn) for name, fn in fns.items()}
    calls = {name: max(1, min(10, int(0.01 / seconds(fn)))) for name, fn in fns.items()}
    times = {name: [] for name in fns}
    for _ in range(rounds):
        for name, fn in fns.items():
            times[name].append(seconds(fn, calls[name]))
    return {name: statistics.median(t) for name, t in times.items()}, first


def machine() -> str:
    """Device, versions and load, in one line."""
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    versions = f"Python {platform.python_version()}, jax {jax.__version__}"
    return f"{jax.devices()[0].device_kind}, {versions}, {load}"


def print_rows(rows: Iterable[dict]) -> list[dict]:
    """Prints each row as soon as it is there, below the names of its columns."""
    printed, columns = [], []
    for row in rows:
        if not printed:
            columns = [(name, max(len(name), len(_cell(row[name])), 8)) for name in row]
            print("  ".join(f"{name:>{width}}" for name, width in columns))
        cells = [f"{_cell(row.get(name, '')):>{width}}" for name, width in columns]
        known = {name for name, _ in columns}
        more = [f"{name} {_cell(row[name])}" for name in row if name not in known]
        print("  ".join(cells + more), flush=True)
        printed.append(row)
    return printed


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"
