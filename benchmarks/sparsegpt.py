"""SparseGPT on one layer: time and memory, beside a plain PyTorch statement of it.

    python -m benchmarks.sparsegpt [--size 4096] [--outputs 4096] [--rounds 5]

A layer of 4096 x 4096 on a GPU, 512 x 512 elsewhere, 2:4, from its second moment to its
weights: the factor and the search, also with ten sweeps of refinement; and ADMM. The
PyTorch statement is our own, of the paper's algorithm as it is told: the inverse, its
Cholesky factor, blocks of 128 inputs, one input after the other. "error" is the
relative error of the outputs, in float64 where it is that of both; memory is the most
that was taken beyond what there was before.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse as js
from benchmarks.timing import machine, medians, print_rows


def layer(size: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights `(input, output)` and a second moment of correlated inputs."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(size, outputs)).astype(np.float32)
    mixture = rng.normal(size=(size, size)) / np.sqrt(size) + np.eye(size)
    inputs = (rng.normal(size=(4 * size, size)) @ mixture).astype(np.float32)
    return weight, inputs.T @ inputs / len(inputs)


def in_torch(torch, weight, moment, damping=0.01, block=128):
    """SparseGPT 2:4 of `(output, input)` weights, as the paper tells it."""
    size, weight = len(moment), weight.clone()
    damped = moment + damping * moment.diagonal().mean() * torch.eye(
        size, device=moment.device
    )
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper = torch.linalg.cholesky(inverse, upper=True)
    for start in range(0, size, block):
        end = min(start + block, size)
        own, inner = weight[:, start:end].clone(), upper[start:end, start:end]
        errors, pruned = torch.zeros_like(own), own[:, :4] != own[:, :4]
        for i in range(end - start):
            if i % 4 == 0:
                costs = (own[:, i : i + 4] / inner.diagonal()[i : i + 4]) ** 2
                pruned[:] = False
                pruned.scatter_(1, costs.topk(2, largest=False).indices, True)
            column = own[:, i]
            kept = torch.where(pruned[:, i % 4], 0, column)
            errors[:, i] = (column - kept) / inner[i, i]
            own[:, i:] -= errors[:, i : i + 1] * inner[i, i:]
            own[:, i] = kept
        weight[:, start:end] = own
        weight[:, end:] -= errors @ upper[start:end, end:]
    return weight


def relative_error(weight, pruned, moment) -> float:
    """`norm(x @ (w - v)) / norm(x @ w)`, in float64."""
    norm = lambda w: np.sqrt(np.sum(w * (moment.astype(np.float64) @ w)))
    weight = weight.astype(np.float64)
    return float(norm(weight - pruned) / norm(weight))


def rows(
    size: int | None = None, rounds: int = 5, outputs: int | None = None
) -> Iterator[dict]:
    """One row for each method."""
    on_gpu = jax.default_backend() == "gpu"
    size = size or (4096 if on_gpu else 512)
    outputs = outputs or size
    weight, moment = layer(size, outputs)
    params = {"w": jnp.asarray(weight)}
    plan = js.plan_sparsity(params, [js.Rule("w", "2:4", axis=0)])
    fn = lambda params, x: x @ params["w"]
    known = js.collect_statistics(fn, params, [jnp.ones((1, size))], plan=plan)
    given = {
        "w": js.LeafStatistics(
            jnp.asarray(moment)[None], jnp.full(1, 4.0 * size), known["w"].columns
        )
    }
    before = _device_memory()
    searchers = {
        "SparseGPT": js.SparseGPTSearcher(plan),
        "SparseGPT, refined": js.SparseGPTSearcher(plan, refine=10),
        "ADMM": js.ADMMSearcher(plan),
        "ADMM, refined": js.ADMMSearcher(plan, refine=10),
        "Wanda": js.WandaSearcher(plan),
        "magnitude": js.MagnitudeSearcher(plan),
    }
    for name, searcher in searchers.items():
        search = lambda searcher=searcher: searcher.search(params, given).params["w"]
        times, first = medians({name: search}, rounds)
        peak = _device_memory(peak=True) - before  # never less than another's before
        yield {
            "method": name,
            "size": f"{size} x {outputs}",
            "s": times[name],
            "first s": first[name],
            "peak MiB": peak if name == "SparseGPT" else "",
            "error": relative_error(weight, np.asarray(search()), moment),
        }
    yield from _torch_rows(weight, moment, rounds, on_gpu)


def _torch_rows(weight, moment, rounds: int, on_gpu: bool) -> Iterator[dict]:
    try:
        torch = import_module("torch")  # a peer, where it is installed
    except ImportError:
        return
    torch.backends.cuda.matmul.allow_tf32 = False
    device = "cuda" if on_gpu else "cpu"
    given = [torch.tensor(x, device=device) for x in (weight.T.copy(), moment)]
    before = torch.cuda.memory_allocated() if on_gpu else 0

    def run() -> tuple[float, np.ndarray]:
        start = time.perf_counter()
        pruned = in_torch(torch, *given)
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start, pruned.cpu().numpy().T

    first, pruned = run()
    times = [run()[0] for _ in range(rounds)]
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20 if on_gpu else ""
    yield {
        "method": "SparseGPT, PyTorch",
        "size": " x ".join(map(str, weight.shape)),
        "s": statistics.median(times),
        "first s": first,
        "peak MiB": peak,
        "error": relative_error(weight, pruned, moment),
    }


def _device_memory(peak: bool = False) -> float:
    known = jax.devices()[0].memory_stats() or {}
    return known.get("peak_bytes_in_use" if peak else "bytes_in_use", 0) / 2**20


def main():
    """Prints one row for each method."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int)
    parser.add_argument("--outputs", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(machine())
    print_rows(rows(args.size, args.rounds, args.outputs))


if __name__ == "__main__":
    main()
