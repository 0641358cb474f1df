"""Take half of the hidden channels out of a pretrained language model's MLPs.

    python examples/shrink_language_model.py [--full]

SmolLM2-135M on two texts, the King James Bible and CPython's language reference: the
channels are chosen, and what is left is refitted, by what the model reads in the first
halves. It is evaluated on the second halves. Nothing is trained, and the smaller model
is dense. On two CPU cores it takes some minutes and its figures are of few tokens;
`--full` is for a GPU. Seconds include compilation. "time" is that of a forward pass of
the smaller model as a part of the dense one's, and "operations" the part that is left
of those that XLA counts.
"""

import argparse
import statistics as numbers
import time

import jax
import jax.numpy as jnp
import numpy as np
from decoder import loss, perplexity, small_decoder
from flax import nnx
from real_data import load_text
from smollm import load_pieces, load_smollm

import jaxsparse as js


MLP = r"blocks/\d+/mlp/.*"


def load(smoke, evaluated, length):
    """The model, batches of 128 pieces to calibrate on, and texts to evaluate on."""
    if smoke:
        pieces = load_text()[0][: 16 * 65].astype(np.int32).reshape(16, 65)
        return small_decoder(nnx.Rngs(0)), [pieces[:8]], {"CPython": pieces[8:]}
    names = ["KJV", "CPython"]
    calibration, texts = load_pieces(evaluated, 128, names, length=length)
    return load_smollm(), np.split(calibration, 32), texts


def operations(forward, params, tokens):
    """The operations that XLA counts in a forward pass."""
    return forward.lower(params, tokens).cost_analysis()["flops"]


def time_ratio(forward, smaller, dense, tokens, rounds):
    """Median time of a forward pass, as a part of the dense one's; both take turns."""

    def seconds(params):
        start = time.perf_counter()
        jax.block_until_ready(forward(params, tokens))
        return time.perf_counter() - start

    pairs = [(seconds(smaller), seconds(dense)) for _ in range(rounds + 1)][1:]
    return numbers.median(new / old for new, old in pairs)


def read_options():
    """Reads the options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="for a GPU")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--smoke", action="store_true", help="seconds, for tests")
    return parser.parse_args()


def main():
    """Shrinks in several ways and prints one table."""
    args = read_options()
    jax.config.update("jax_default_matmul_precision", "highest")
    evaluated, length = (110, 512) if args.full else (16, 256)  # pieces of each text
    model, batches, texts = load(args.smoke, evaluated, length)
    graph, dense = nnx.split(model, nnx.Param)
    forward = jax.jit(lambda params, tokens: nnx.merge(graph, params)(tokens))
    mean_loss = jax.jit(lambda params, tokens: loss(nnx.merge(graph, params), tokens))
    example = (batches[0],)

    rule = js.Rule(r"blocks/\d+/mlp/down/kernel", js.PerOutput(0.5), sizes=None)
    plan = js.plan_sparsity(dense, [rule], fn=forward, args=example)
    start = time.perf_counter()
    statistics = js.collect_statistics(forward, dense, batches, plan=plan)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    counts = {name: pieces[:, 1:].size for name, pieces in texts.items()}
    tokens = sum(batch.size for batch in batches)
    print(f"tokens: calibrated on {tokens}, evaluated on {counts}")
    print(f"second moments: {time.perf_counter() - start:.1f} s\n")
    names = "".join(f"{name:>10}" for name in texts)
    print(f"{'perplexity':28}{names}{'seconds':>9}")

    def row(name, make):
        start = time.perf_counter()
        params = jax.block_until_ready(make())
        seconds = time.perf_counter() - start
        of = lambda pieces: perplexity(mean_loss, params, pieces)
        cells = "".join(f"{of(pieces):10.2f}" for pieces in texts.values())
        print(f"{name:28}{cells}{seconds:9.1f}", flush=True)

    def shrink(**options):
        return js.shrink_params(
            dense, forward, example, sparsity={MLP: args.sparsity}, **options
        )

    by_energy = {"statistics": statistics}
    results = {}
    row("dense", lambda: dense)
    for name, options in {
        "magnitude": {},
        "magnitude, refitted": {**by_energy, "scores": "magnitude"},
        "energy": {**by_energy, "shrinkage": 1.0},
        "energy, refitted": by_energy,
    }.items():
        results[name] = shrink(**options)
        row(name, lambda name=name: results[name].params)
    result = results["energy, refitted"]
    print(f"\n{result}")

    grown = js.grow_back(result, result.params)
    logits, same = (forward(params, batches[0]) for params in (result.params, grown))
    print(f"grown back, logits differ by at most {jnp.abs(same - logits).max():.1e}")
    count = lambda params: operations(forward, params, batches[0])
    left = count(result.params) / count(dense)
    rounds = 3 if args.smoke else 9
    taken = time_ratio(forward, result.params, dense, batches[0], rounds)
    print(f"time {taken:.2f}, operations {left:.2f}")


if __name__ == "__main__":
    main()
