"""Permute the channels of a pretrained language model, then prune it to 2:4.

    python examples/permute_language_model.py [--full] [--width]

SmolLM2-135M: the channels inside each MLP and of each value head are permuted, with
`--width` also those between the blocks, by the scores of Wanda. Then it is pruned by
Wanda at once and by SparseGPT block by block: with its channels as they were, permuted,
and at random as a control. Calibrated on the first halves of two texts, the King James
Bible and CPython's language reference, evaluated on their second halves. On two CPU
cores it evaluates few tokens; `--full` is for a GPU. Seconds include compilation.
"""

import argparse
import time
from functools import partial

import jax
import numpy as np
from decoder import loss, perplexity, small_decoder
from flax import nnx
from real_data import load_text
from smollm import load_pieces, load_smollm

import jaxsparse as js


def load(args):
    """The model, batches to calibrate on, and texts to evaluate on."""
    if args.smoke:
        pieces = load_text()[0][: 16 * 65].astype(np.int32).reshape(16, 65)
        return small_decoder(nnx.Rngs(0)), [pieces[:8]], {"CPython": pieces[8:]}
    evaluated = args.pieces or (110 if args.full else 16)
    calibrated, batch = (128, 8) if args.full else (16, 2)
    calibration, texts = load_pieces(evaluated, calibrated, ["KJV", "CPython"])
    return load_smollm(), np.split(calibration, calibrated // batch), texts


def permutable(forward, dense, tokens, width):
    """The channel groups to search: those between the blocks have the most rows."""
    groups = js.channel_groups(forward, dense, tokens)
    embedded = {group for group in groups if group.members[-1].path == "norm/scale"}
    return js.ChannelGroups(tuple(x for x in groups if width or x not in embedded))


def at_random(result, dense, seed):
    """The result with random permutations of the same groups instead."""
    rng = np.random.default_rng(seed)
    drawn = {i: rng.permuted(x, axis=-1) for i, x in result.permutations.items()}
    result = result._replace(permutations=drawn)
    return result._replace(params=result.permute(dense))


def print_gains(result, seconds):
    """The mean efficacy of each kind of group, and the lowest."""
    kinds = {}
    for gain in result.gains.values():
        if not gain.reason:
            kinds.setdefault(gain.leaves[0].split("/", 2)[-1], []).append(gain)
    for kind, gains in kinds.items():
        before, after, efficacy = (
            np.mean([getattr(gain, what) for gain in gains])
            for what in ("before", "after", "efficacy")
        )
        lowest = min(gain.efficacy for gain in gains)
        print(
            f"{len(gains):3} x {kind:24}{before:8.2%} ->{after:7.2%}, "
            f"efficacy {efficacy:.1%}, lowest {lowest:.1%}"
        )
    print(f"searched in {seconds:.1f} CPU seconds\n")


def read_options():
    """Reads the options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="for a GPU")
    parser.add_argument("--smoke", action="store_true", help="seconds, for tests")
    parser.add_argument("--width", action="store_true", help="also between blocks")
    parser.add_argument("--pieces", type=int, help="of 512 tokens, from each text")
    parser.add_argument("--draws", type=int, default=3, help="random permutations")
    return parser.parse_args()


def main():
    """Permutes, prunes in all ways and prints one table."""
    args = read_options()
    jax.config.update("jax_default_matmul_precision", "highest")
    model, batches, texts = load(args)
    graph, dense = nnx.split(model, nnx.Param)
    forward = lambda params, tokens: nnx.merge(graph, params)(tokens)
    mean_loss = jax.jit(lambda params, tokens: loss(nnx.merge(graph, params), tokens))
    stages = [f"blocks/{i}/.*" for i in dense["blocks"]]
    tokens = batches[0]
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    plan = js.plan_sparsity(dense, "2:4", fn=forward, args=(tokens,))
    groups = permutable(forward, dense, tokens, args.width)
    statistics = js.collect_statistics(
        forward, dense, batches, plan=plan, statistic="mean_square"
    )
    scores = js.wanda_scores(dense, statistics)
    start = time.process_time()
    result = js.permute_channels(
        dense, plan, forward, (tokens[:1],), scores=scores, groups=groups
    )
    print_gains(result, time.process_time() - start)

    counts = {name: pieces[:, 1:].size for name, pieces in texts.items()}
    total = sum(batch.size for batch in batches)
    print(f"tokens: calibrated on {total}, evaluated on {counts}\n")
    names = "".join(f"{name:>10}" for name in texts)
    print(f"{'perplexity':40}{names}{'seconds':>9}")

    def row(method, order, make):
        start = time.perf_counter()
        params = jax.block_until_ready(make())
        seconds = time.perf_counter() - start
        of = lambda pieces: perplexity(mean_loss, params, pieces)
        cells = "".join(f"{of(pieces):10.2f}" for pieces in texts.values())
        print(f"{method:20}{order:20}{cells}{seconds:9.1f}", flush=True)
        return params

    def by_wanda(order):
        moved = statistics if order is None else order.permute(statistics)
        params = dense if order is None else order.params
        return js.WandaSearcher(plan).search(params, moved).params

    def by_sparsegpt(order):
        params = dense if order is None else order.params
        searcher = js.SparseGPTSearcher(plan)
        return js.prune_sequentially(
            forward, params, batches, searcher, boundaries=stages
        ).params

    orders = {"as they were": None, "permuted": result}
    for i in range(args.draws):
        orders[f"at random {i + 1}"] = at_random(result, dense, i)
    pruned = row("dense", "as they were", lambda: dense)
    row("dense", "permuted", lambda: result.params)
    for name, prune in (
        ("Wanda", by_wanda),
        ("SparseGPT, in order", by_sparsegpt),
    ):
        for order, permuted in orders.items():
            pruned = row(name, order, partial(prune, permuted))
    print(f"\n{plan}\nsparsity of all weights: {js.sparsity(pruned):.1%}")


if __name__ == "__main__":
    main()
