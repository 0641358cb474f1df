"""The first and the second call of calibrated pruning, in one process.

    python -m benchmarks.cold_start [--layers 30] [--leaves 400]

Statistics, searches and pruning in order of a small decoder of alike blocks, and
statistics and a search of a chain of alike leaves of 64 x 64. Each row has the seconds
of two calls in a row, and how many programs XLA compiled in each.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxsparse as js
from benchmarks.timing import machine, print_rows
from examples.decoder import Config, Decoder, loss


#: JAX's event for each program that it compiles.
COMPILED = "/jax/core/compile/backend_compile_duration"


def two_calls(network: str, step: str, run: Callable[[], Any]) -> tuple[dict, Any]:
    """Returns the row of two calls, and the result of the second one."""
    compiled: list[float] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILED:
            compiled.append(duration_secs)

    row: dict[str, Any] = {"network": network, "step": step}
    result = None
    jax.monitoring.register_event_duration_secs_listener(listen)
    for name in ("first", "second"):
        compiled.clear()
        start = time.perf_counter()
        result = run()
        jax.block_until_ready(jax.tree.leaves(result))
        row[f"{name} s"] = time.perf_counter() - start
        row[f"{name} programs"] = len(compiled)
    jax.monitoring.unregister_event_duration_listener(listen)
    return row, result


def decoder(layers: int) -> tuple[Callable[..., Any], Any, list[np.ndarray]]:
    """Returns the loss of a small decoder, its parameters and batches."""
    config = Config(
        vocab=256,
        width=64,
        layers=layers,
        query_heads=4,
        kv_heads=2,
        hidden=128,
        rope_base=1e4,
        epsilon=1e-5,
    )
    graph, params = nnx.split(Decoder(config, nnx.Rngs(0)), nnx.Param)
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 256, (8, 64)) for _ in range(4)]
    return lambda params, x: loss(nnx.merge(graph, params), x), params, batches


def chain(leaves: int) -> tuple[Callable[..., Any], Any, list[np.ndarray]]:
    """Returns a chain of alike layers, its parameters and batches."""

    def fn(params, x):
        for leaf in params.values():
            x = jnp.tanh(x @ leaf["kernel"])
        return x

    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    params = {f"{i}": {"kernel": jnp.asarray(draw(64, 64)) / 8} for i in range(leaves)}
    return fn, params, [draw(256, 64) for _ in range(4)]


def rows(layers: int = 30, leaves: int = 400) -> Iterator[dict]:
    """One row for each network and step."""
    networks = {f"{layers} blocks": decoder(layers), f"{leaves} leaves": chain(leaves)}
    for name, (fn, params, batches) in networks.items():
        plan = js.plan_sparsity(params, "2:4", fn=fn, args=(batches[0],))
        collect = lambda fn=fn, params=params, batches=batches, plan=plan: (
            js.collect_statistics(fn, params, batches, plan=plan)
        )
        row, statistics = two_calls(name, "collect_statistics", collect)
        yield row
        for searcher in (js.WandaSearcher(plan), js.SparseGPTSearcher(plan)):
            kind = type(searcher).__name__
            search = lambda searcher=searcher, params=params, x=statistics: (
                searcher.search(params, x)[:2]
            )
            yield two_calls(name, f"{kind}.search", search)[0]
    name, (fn, params, batches) = next(iter(networks.items()))
    boundaries = [f"blocks/{i}/.*" for i in range(layers)]
    for kind in (js.WandaSearcher, js.SparseGPTSearcher):
        searcher = kind(js.plan_sparsity(params, "2:4", fn=fn, args=(batches[0],)))
        prune = lambda searcher=searcher: js.prune_sequentially(
            fn, params, batches, searcher, boundaries=boundaries
        )[:2]
        yield two_calls(name, f"{kind.__name__} in order", prune)[0]


def main():
    """Prints one row for each network and step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--leaves", type=int, default=400)
    args = parser.parse_args()
    print(machine())
    print_rows(rows(args.layers, args.leaves))


if __name__ == "__main__":
    main()
