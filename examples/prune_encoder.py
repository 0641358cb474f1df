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


def main():
    """Fits the probe, prunes in all ways and prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pattern", nargs="+", default=["2:4"], metavar="N:M")
    parser.add_argument("--shrinkage", nargs="+", type=float, default=[0.1])
    parser.add_argument("--verses", type=int, default=3072, help="of each half")
    parser.add_argument("--smoke", action="store_true", help="seconds, for tests")
    args = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", "highest")
    task = smoke_task() if args.smoke else load_task(args.verses)
    model = small_encoder(nnx.Rngs(0)) if args.smoke else load_minilm()
    graph, dense = nnx.split(model, nnx.Param)
    encode = jax.jit(lambda params, tokens: nnx.merge(graph, params)(tokens))
    batches = np.split(task.calibration, len(task.calibration) // BATCH)

    vectors = lambda params: [
        embed(encode, params, tokens) for tokens in (task.held_out[0], task.other)
    ]
    fitted, classes = task.fit
    probe = LogisticRegression(C=10, max_iter=1000)
    probe.fit(embed(encode, dense, fitted), classes)
    expected = vectors(dense)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(f"calibrated on {np.sum(is_token(task.calibration))} tokens")
    print(f"evaluated on {len(expected[0])} verses and {len(expected[1])} sentences\n")
    print(f"{'':32}{'accuracy, %':>12}{'cosine, KJV':>12}{'CPython':>9}{'seconds':>9}")

    def row(name, make):
        start = time.perf_counter()
        found = jax.block_until_ready(make())
        seconds = time.perf_counter() - start
        own = vectors(found.params)
        accuracy = 100 * probe.score(own[0], task.held_out[1])
        kjv, cpython = (
            np.sum(x * y, axis=-1).mean() for x, y in zip(own, expected, strict=True)
        )
        print(
            f"{name:32}{accuracy:12.1f}{kjv:12.4f}{cpython:9.4f}{seconds:9.1f}",
            flush=True,
        )
        return found

    row("dense", lambda: js.SearchResult(dense, None, js.Plan(())))
    plans = [
        js.plan_sparsity(
            dense, pattern, fn=encode, args=(batches[0],), dense_head=False
        )
        for pattern in args.pattern
    ]
    start = time.perf_counter()
    statistics = js.collect_statistics(
        encode, dense, batches, plan=plans[0], weights=is_token
    )
    print(f"{'second moments':65}{time.perf_counter() - start:9.1f}")
    zeros = []
    for pattern, plan in zip(args.pattern, plans, strict=True):
        every = ways(plan, encode, dense, batches, statistics, args.shrinkage)
        for name, make in every.items():
            found = row(f"{pattern}, {name}", make)
            js.check_sparsity(found.params, plan)
            zeros.append(js.sparsity(found.params))
    print(f"\n{plans[0]}\nsparsity of all weights: {zeros[0]:.1%}")


if __name__ == "__main__":
    main()
