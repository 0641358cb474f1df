"""Prune a pretrained encoder of sentences, and judge it by a probe that stays frozen.

    python examples/prune_encoder.py [--pattern 2:4 4:8] [--shrinkage 0 0.1 0.2 0.3]

all-MiniLM-L6-v2 turns a verse of the King James Bible into a vector. A linear probe
tells from it in which of six groups of books the verse is: it is fitted to the dense
encoder's vectors of even chapters, and never again. Pruned encoders are calibrated on
256 of these verses. Accuracy is that of the probe on odd chapters. Cosines are between
the vectors of a pruned and the dense encoder: for these verses, and for sentences of
CPython's language reference, which nothing is calibrated on. Seconds include
compilation.
"""

import argparse
import time
from functools import partial

import jax
import numpy as np
from flax import nnx
from minilm import PADDING, load_minilm, small_encoder
from sklearn.linear_model import LogisticRegression
from verses import load_task, smoke_task

import jaxsparse as js


BATCH = 64


def is_token(tokens):
    """Whether tokens are of a sentence."""
    return tokens != PADDING


def embed(encode, params, tokens):
    """The vectors of sentences, in batches of about one length, to save padding."""
    lengths = np.sum(is_token(tokens), axis=1)
    order = np.argsort(lengths, stable=True)
    parts = []
    for rows in np.split(order, range(BATCH, len(order), BATCH)):
        longest = -(-lengths[rows[-1]] // 16) * 16
        parts.append(encode(params, tokens[rows, :longest]))
    return np.concatenate(parts)[np.argsort(order)]


def ways(plan, encode, dense, batches, statistics, shrinkages):
    """The ways to prune, by name."""
    sparsegpt = partial(js.SparseGPTSearcher, plan)
    search = lambda searcher: partial(searcher.search, dense, statistics)
    return {
        "magnitude": search(js.MagnitudeSearcher(plan)),
        "Wanda": search(js.WandaSearcher(plan)),
        **{
            f"SparseGPT, shrinkage {share:g}": search(sparsegpt(shrinkage=share))
            for share in shrinkages
        },
        "SparseGPT, in order": partial(
            js.prune_sequentially,
            *(encode, dense, batches, sparsegpt()),
            boundaries=[f"layers/{i}/.*" for i in dense["layers"]],
            weights=is_token,
        ),
        "ADMM": search(js.ADMMSearcher(plan)),
    }


def print_row(name, probe, task, own, dense, seconds):
    """The frozen probe's accuracy, and how close vectors are to the dense ones."""
    accuracy = 100 * probe.score(own[0], task.held_out[1])
    cosines = [np.sum(x * y, axis=-1).mean() for x, y in zip(own, dense, strict=True)]
    cells = "".join(f"{cosine:12.3f}" for cosine in cosines)
    print(f"{name:32}{accuracy:12.1f}{cells}{seconds:9.1f}", flush=True)


def main():
    """Fits the probe, prunes in all ways and prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pattern", nargs="+", default=["2:4"], metavar="N:M")
    parser.add_argument("--shrinkage", nargs="+", type=float, default=[0.1])
    parser.add_argument("--verses", type=int, default=2048, help="of each half")
    parser.add_argument("--smoke", action="store_true", help="seconds, for tests")
    args = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", "highest")
    task = smoke_task() if args.smoke else load_task(args.verses)
    model = small_encoder(nnx.Rngs(0)) if args.smoke else load_minilm()
    graph, dense = nnx.split(model, nnx.Param)
    encode = jax.jit(lambda params, tokens: nnx.merge(graph, params)(tokens))
    batches = np.split(task.calibration, len(task.calibration) // BATCH)
    plans = {
        pattern: js.plan_sparsity(
            dense, pattern, fn=encode, args=(batches[0],), dense_head=False
        )
        for pattern in args.pattern
    }

    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(f"calibrated on {np.sum(is_token(task.calibration))} tokens")
    print(f"evaluated on {len(task.held_out[0])} verses, {len(task.other)} sentences\n")
    heads = "accuracy, %", "cosine, KJV", "CPython"
    print(f"{'':32}{''.join(f'{head:>12}' for head in heads)}{'seconds':>9}")
    probe = LogisticRegression(C=10, max_iter=1000)
    probe.fit(embed(encode, dense, task.fit[0]), task.fit[1])
    held_out = task.held_out[0], task.other
    expected = [embed(encode, dense, tokens) for tokens in held_out]
    print_row("dense", probe, task, expected, expected, 0.0)

    start = time.perf_counter()
    plan, *_ = plans.values()
    statistics = js.collect_statistics(
        encode, dense, batches, plan=plan, weights=is_token
    )
    print(f"{'second moments':68}{time.perf_counter() - start:9.1f}")
    pruned = []
    for pattern, of_pattern in plans.items():
        every = ways(of_pattern, encode, dense, batches, statistics, args.shrinkage)
        for name, make in every.items():
            start = time.perf_counter()
            found = jax.block_until_ready(make())
            seconds = time.perf_counter() - start
            js.check_sparsity(found.params, of_pattern)
            own = [embed(encode, found.params, tokens) for tokens in held_out]
            print_row(f"{pattern}, {name}", probe, task, own, expected, seconds)
            pruned.append(found.params)
    print(f"\n{plan}\nsparsity of all weights: {js.sparsity(pruned[0]):.1%}")


if __name__ == "__main__":
    main()
