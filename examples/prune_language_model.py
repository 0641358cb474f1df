"""Prune a pretrained language model without its training: magnitude, Wanda, SparseGPT.

    python examples/prune_language_model.py [--full]

SmolLM2-135M, calibrated on the first half of the King James Bible; perplexity on the
second half and on half of another text, CPython's language reference. On two CPU cores
it takes some minutes and its figures are indicative, of few tokens; `--full` is the
whole table, for a GPU. Seconds are those of everything from the dense model on,
compilation too; the memory is the most that was taken up to then.
"""

import argparse
import resource
import tempfile
import time
from functools import partial

import jax
import numpy as np
import optax
from decoder import loss, small_decoder
from flax import nnx
from real_data import load_bible, load_reference, load_text
from smollm import load_smollm, load_tokenizer, token_pieces

import jaxsparse as js


LENGTH, BATCH = 512, 8


def load(smoke, evaluated, calibrated):
    """The model, batches to calibrate on, and texts to evaluate on."""
    if smoke:
        pieces = load_text()[0][: 16 * 65].astype(np.int32).reshape(16, 65)
        return small_decoder(nnx.Rngs(0)), [pieces[:8]], {"CPython": pieces[8:]}
    tokenizer = load_tokenizer()
    (bible, held_out), (_, other) = load_bible(), load_reference()
    calibration = token_pieces(tokenizer, bible, calibrated, LENGTH)
    texts = {
        "KJV": token_pieces(tokenizer, held_out, evaluated, LENGTH),
        "CPython": token_pieces(tokenizer, other, evaluated, LENGTH),
    }
    return load_smollm(), np.split(calibration, calibrated // BATCH), texts


def perplexity(mean_loss, params, pieces):
    """Of each next token."""
    parts = np.array_split(pieces, -(-len(pieces) // BATCH))
    losses = [mean_loss(params, part) for part in parts]
    return float(np.exp(np.average(losses, weights=[len(part) for part in parts])))


def ways(plan, forward, dense, batches, stages):
    """The ways to prune, by name: all leaves at once, or block by block."""

    def at_once(searcher):
        statistics = js.collect_statistics(
            forward, dense, batches, plan=plan, statistic=searcher.statistic
        )
        return searcher.search(dense, statistics)

    def in_order(searcher):
        return js.prune_sequentially(
            forward, dense, batches, searcher, boundaries=stages
        )

    wanda, sparsegpt = js.WandaSearcher(plan), js.SparseGPTSearcher(plan)
    return {
        "magnitude": lambda: js.MagnitudeSearcher(plan).search(dense),
        "Wanda": lambda: at_once(wanda),
        "Wanda, in order": lambda: in_order(wanda),
        "SparseGPT": lambda: at_once(sparsegpt),
        "SparseGPT, in order": lambda: in_order(sparsegpt),
    }


def fine_tune(mean_loss, found, batches, steps):
    """A short training with the masks held."""
    tx = js.wrap_optimizer(optax.adam(1e-5), masks=found.masks)

    @jax.jit
    def step(params, state, tokens):
        updates, state = tx.update(jax.grad(mean_loss)(params, tokens), state, params)
        return optax.apply_updates(params, updates), state

    params, state = found.params, tx.init(found.params)
    for i in range(steps):
        params, state = step(params, state, batches[i % len(batches)])
    js.check_sparsity(params, found.plan)
    return found._replace(params=params)


def peak_memory():
    """The most that the device, or the process, has taken so far, in GiB."""
    known = jax.devices()[0].memory_stats() or {}
    process = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return known.get("peak_bytes_in_use", process) / 2**30


def main():
    """Prunes in all ways and prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="for a GPU")
    parser.add_argument("--smoke", action="store_true", help="seconds, for tests")
    args = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", "highest")
    # The program of one layer is that of the next: let JAX compile it once.
    cache = tempfile.TemporaryDirectory()
    jax.config.update("jax_compilation_cache_dir", cache.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    evaluated, calibrated, steps = (110, 128, 200) if args.full else (8, 16, 10)
    model, batches, texts = load(args.smoke, evaluated, calibrated)
    graph, dense = nnx.split(model, nnx.Param)
    forward = lambda params, tokens: nnx.merge(graph, params)(tokens)
    mean_loss = jax.jit(lambda params, tokens: loss(nnx.merge(graph, params), tokens))
    stages = [f"blocks/{i}/.*" for i in range(len(model.blocks))]

    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    tokens = sum(batch.size for batch in batches)
    counts = [f"{name} {pieces[:, 1:].size:,}" for name, pieces in texts.items()]
    print(f"calibrated on {tokens:,} tokens; evaluated on: {', '.join(counts)}\n")
    columns = "".join(f"{name:>10}" for name in texts)
    print(f"{'perplexity':38}{columns}{'seconds':>9}{'peak GiB':>9}")

    def row(pattern, method, make):
        start = time.perf_counter()
        found = jax.block_until_ready(make())
        seconds, peak = time.perf_counter() - start, peak_memory()
        results = [perplexity(mean_loss, found.params, x) for x in texts.values()]
        cells = "".join(f"{result:10.2f}" for result in results)
        print(f"{pattern!s:16}{method:22}{cells}{seconds:9.1f}{peak:9.2f}", flush=True)
        return found

    found = row("dense", "", lambda: js.SearchResult(dense, None, js.Plan(())))
    for pattern in ["2:4", "4:8", js.PerOutput(0.5)] if args.full else ["2:4"]:
        plan = js.plan_sparsity(dense, pattern, fn=forward, args=(batches[0],))
        for name, make in ways(plan, forward, dense, batches, stages).items():
            found = row(pattern, name, make)
        tune = partial(fine_tune, mean_loss, found, batches, steps)
        found = row(pattern, f"  and {steps} steps", tune)
    sparsity = js.sparsity(found.params)
    print(f"\n{found.plan}\nsparsity of all weights: {sparsity:.1%}")


if __name__ == "__main__":
    main()
