"""Prune a pretrained language model without its training: magnitude, Wanda, SparseGPT.

    python examples/prune_language_model.py [--full]

SmolLM2-135M on two texts, the King James Bible and CPython's language reference:
calibrated on their first halves, or on that of one (`--calibrate KJV`), evaluated on
their second halves and on files (`--text FILE`). On two CPU cores it takes some minutes
and its figures are indicative, of few tokens; `--full` is the whole table, for a GPU,
where fine-tuning takes 11 GiB. Seconds include compilation, memory is the most so far.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
from decoder import loss, small_decoder
from flax import nnx
from perplexity_row import print_columns, print_row
from real_data import load_text
from smollm import load_pieces, load_smollm, peak_memory

import jaxsparse as js


def load(smoke, files, batch, *sizes):
    """The model, batches to calibrate on, and texts to evaluate on."""
    if smoke:
        pieces = load_text()[0][: 16 * 65].astype(np.int32).reshape(16, 65)
        return small_decoder(nnx.Rngs(0)), [pieces[:8]], {"CPython": pieces[8:]}
    calibration, texts = load_pieces(*sizes, files=files)
    return load_smollm(), np.split(calibration, len(calibration) // batch), texts


def ways(plan, forward, dense, batches, stages, statistics):
    """The ways to prune, by name: all leaves at once, or block by block."""

    def in_order(searcher):
        return js.prune_sequentially(
            forward, dense, batches, searcher, boundaries=stages
        )

    wanda, sparsegpt = js.WandaSearcher(plan), js.SparseGPTSearcher(plan)
    unshrunk = js.SparseGPTSearcher(plan, shrinkage=0.0)
    return {
        "magnitude": lambda: js.MagnitudeSearcher(plan).search(dense),
        "Wanda": lambda: wanda.search(dense, statistics),
        "Wanda, in order": lambda: in_order(wanda),
        "SparseGPT": lambda: sparsegpt.search(dense, statistics),
        "SparseGPT, shrinkage 0": lambda: unshrunk.search(dense, statistics),
        "SparseGPT, in order": lambda: in_order(sparsegpt),
    }


def fine_tune(mean_loss, found, batches, steps):
    """A short training with the masks held."""
    learning_rate = optax.cosine_decay_schedule(1e-4, steps)
    tx = js.wrap_optimizer(optax.adam(learning_rate), masks=found.masks)

    @jax.jit
    def step(params, state, tokens):
        updates, state = tx.update(jax.grad(mean_loss)(params, tokens), state, params)
        return optax.apply_updates(params, updates), state

    params, state = found.params, tx.init(found.params)
    for i in range(steps):
        params, state = step(params, state, batches[i % len(batches)])
    js.check_sparsity(params, found.plan)
    return found._replace(params=params)


def main():
    """Prunes in all ways and prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="for a GPU")
    texts = ["KJV", "CPython"]
    parser.add_argument("--calibrate", nargs="+", choices=texts, default=texts)
    parser.add_argument("--text", nargs="+", type=Path, default=[], metavar="FILE")
    parser.add_argument("--smoke", action="store_true", help="seconds, for tests")
    args = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", "highest")
    batch, *sizes, steps = (8, 110, 128, 200) if args.full else (2, 8, 16, 10)
    model, batches, texts = load(args.smoke, args.text, batch, *sizes, args.calibrate)
    graph, dense = nnx.split(model, nnx.Param)
    forward = lambda params, tokens: nnx.merge(graph, params)(tokens)
    mean_loss = jax.jit(lambda params, tokens: loss(nnx.merge(graph, params), tokens))
    stages = [f"blocks/{i}/.*" for i in dense["blocks"]]

    print_columns(batches, texts, 40)

    def row(pattern, method, make):
        return print_row(mean_loss, texts, f"{pattern!s:16}{method:24}", make)

    row("dense", "", lambda: js.SearchResult(dense, None, js.Plan(())))
    patterns = ["2:4", "4:8", js.PerOutput(0.5)] if args.full else ["2:4"]
    plans = [
        js.plan_sparsity(dense, pattern, fn=forward, args=(batches[0],))
        for pattern in patterns
    ]
    start = time.perf_counter()
    statistics = js.collect_statistics(forward, dense, batches, plan=plans[0])
    seconds = time.perf_counter() - start
    print(
        f"{'second moments':{40 + 10 * len(texts)}}{seconds:9.1f}{peak_memory():9.2f}"
    )
    found = {}
    for pattern, plan in zip(patterns, plans, strict=True):
        every = ways(plan, forward, dense, batches, stages, statistics)
        for name, make in every.items():
            found[pattern] = row(pattern, name, make)
    for pattern, result in found.items():
        tune = partial(fine_tune, mean_loss, result, batches, steps)
        found[pattern] = row(pattern, f"  and {steps} steps", tune)
    zeros = js.sparsity(found["2:4"].params)
    print(f"\n{plans[0]}\nsparsity of all weights: {zeros:.1%}")


if __name__ == "__main__":
    main()
