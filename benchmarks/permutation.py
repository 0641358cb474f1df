"""Channel permutations: what the search gains, and its time.

    python -m benchmarks.permutation [--rounds 5] [--large]

ASP's own example (128 outputs of 64 channels) and Gaussian weights, by magnitude; with
`--large` only a layer as large as in an MLP of Llama 8B, for a GPU. "efficacy" is how
much of the way from plain n:m to pruning each output freely is gone, in percent, with
the first of several keys; "lowest" is that of the worst. Times are seconds of a call
once compiled, the process' CPU seconds of it, and the seconds of the first call.
`examples/permute_language_model.py` does it with a language model.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse as js
from benchmarks.timing import machine, print_rows


def random_weights(large: bool) -> dict[str, tuple[Any, str]]:
    """Weights `(channel, output)` and their pattern, by name."""
    if large:
        return {
            "Llama 8B's": (jax.random.normal(jax.random.key(0), (14336, 4096)), "2:4")
        }
    gaussian = np.random.default_rng(0).normal(size=(512, 512))
    asp = np.random.RandomState(1).rand(128, 64).T
    return {
        "ASP's example": (asp, "2:4"),
        "Gaussian": (gaussian, "2:4"),
        "Gaussian, 4:8": (gaussian, "4:8"),
        "Gaussian, 1:4": (gaussian, "1:4"),
    }


def permuted_layer(weights: Any, pattern: str, seed: int) -> Any:
    """The result for a layer behind an MLP's hidden channels."""
    params = {
        "up": jnp.ones((1, len(weights))),
        "down": jnp.asarray(weights, "float32"),
    }
    fn = lambda params: jax.nn.relu(params["up"]) @ params["down"]
    rules = [js.Rule("up", None), js.Rule("down", pattern, axis=0, sizes=None)]
    return js.permute_channels(params, rules, fn, (), key=jax.random.key(seed))


def rows(rounds: int = 5, large: bool = False) -> Iterator[dict]:
    """One row for each matrix."""
    for name, (weights, pattern) in random_weights(large).items():
        call = lambda seed, x=weights, pattern=pattern: permuted_layer(x, pattern, seed)
        first, _, _ = measured(call, 0)
        timed = [measured(call, seed) for seed in range(rounds)]
        efficacies = [
            100 * gain.efficacy
            for *_, result in timed
            for gain in result.gains.values()
        ]
        yield {
            "weights": name,
            "channels": len(weights),
            "outputs": weights.shape[1],
            "efficacy": efficacies[0],
            "lowest": min(efficacies),
            "s": statistics.median(seconds for seconds, _, _ in timed),
            "CPU s": statistics.median(seconds for _, seconds, _ in timed),
            "first s": first,
        }


def measured(fn: Callable[[int], Any], seed: int) -> tuple[float, float, Any]:
    """The seconds of a call, the process' CPU seconds of it, and its result."""
    start, cpu = time.perf_counter(), time.process_time()
    result = jax.block_until_ready(fn(seed))
    return time.perf_counter() - start, time.process_time() - cpu, result


def main():
    """Prints one row for each matrix."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", action="store_true", help="for a GPU")
    args = parser.parse_args()
    print(machine())
    print_rows(rows(args.rounds, args.large))


if __name__ == "__main__":
    main()
