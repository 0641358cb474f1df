"""Prunes a pretrained language model, and trains it back with its masks held.

    python examples/recover_language_model.py [--full] [--train FILE ...]

SmolLM2-135M, pruned by SparseGPT on the first halves of two texts, the King James Bible
and CPython's language reference. The weights that are kept are then trained on these
and on `--train` files: on each next token, and on what the dense model predicts. For
comparison the dense model is trained as long. Both are evaluated on the second halves
and on `--text` files, which nothing is trained on: pieces that share thirteen tokens in
a row with them are left out of the training. `--full` is for a GPU. Seconds include
compilation.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from decoder import loss, perplexity, small_decoder
from flax import nnx
from real_data import load_text
from smollm import abstract_smollm, load_smollm, peak_memory
from training_text import load_training, mixed_batches

import jaxsparse as js


RATE, DENSE_RATE = 1e-3, 1e-4  # pruned weights have further to go


def train(mean_loss, result, teacher, pieces, args, rate):
    """Adam with a cosine schedule; masks hold pruned weights at zero."""
    warmup = min(20, args.steps // 4)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warmup, args.steps)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    if result.masks is not None:
        tx = js.wrap_optimizer(tx, masks=result.masks)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, teacher, tokens):
        gradients = jax.grad(mean_loss)(params, teacher, tokens)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    # Committed, as they are after a step, or the second step would compile again.
    params = jax.device_put(result.params, jax.devices()[0], may_alias=False)  # donated
    state = jax.device_put(tx.init(params), jax.devices()[0])
    own, others = pieces
    for tokens in mixed_batches(own, others, args.batch, args.steps):
        params, state = step(params, state, teacher, tokens)
    return result._replace(params=params)


def load_pieces(args, calibrated, evaluated):
    """Pieces to calibrate on, two texts to train on, and texts to evaluate on."""
    if args.smoke:
        pieces = load_text()[0][: 16 * 65].astype(np.int32).reshape(16, 65)
        return pieces[:8], pieces[:4], pieces[4:8], {"CPython": pieces[8:]}
    return load_training(args.train, args.text, calibrated, evaluated)


def load_models(args):
    """The decoder, and an abstract one that is faster to train."""
    if args.smoke:
        make = lambda dtype: small_decoder(nnx.Rngs(0), dtype, stacked=True)
        return make(jnp.float32), make(jnp.bfloat16)
    attention = "cudnn" if args.full else "xla"
    fast = abstract_smollm(jnp.bfloat16, stacked=True, attention=attention)
    return load_smollm(stacked=True), fast


def prune(forward, dense, pattern, pieces):
    """SparseGPT on the calibration pieces."""
    batches = np.array_split(pieces, -(-len(pieces) // 8))
    plan = js.plan_sparsity(dense, pattern, fn=forward, args=(batches[0],))
    statistics = js.collect_statistics(forward, dense, batches, plan=plan)
    return js.SparseGPTSearcher(plan).search(dense, statistics)


def main():
    """Prunes, trains and prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="for a GPU")
    parser.add_argument("--smoke", action="store_true", help="seconds, for tests")
    parser.add_argument("--pattern", nargs="+", default=["2:4"])
    parser.add_argument("--train", nargs="+", type=Path, default=[], metavar="FILE")
    parser.add_argument("--text", nargs="+", type=Path, default=[], metavar="FILE")
    parser.add_argument("--steps", type=int, default=None)
    args = parser.parse_args()
    sizes = (128, 110, 32, 1200) if args.full else (16, 8, 2, 20)
    calibrated, evaluated, args.batch, steps = sizes
    args.steps = args.steps or steps
    calibration, *pieces, texts = load_pieces(args, calibrated, evaluated)
    model, fast_model = load_models(args)
    graph, dense = nnx.split(model, nnx.Param)
    fast, _ = nnx.split(fast_model, nnx.Param)

    def exactly(fn):  # float32 on a GPU, too
        return jax.default_matmul_precision("highest")(fn)

    forward = lambda params, tokens: nnx.merge(graph, params)(tokens)
    evaluate = jax.jit(exactly(lambda params, x: loss(nnx.merge(graph, params), x)))

    def label_loss(params, _, tokens):
        return loss(nnx.merge(fast, params), tokens)

    def both_losses(params, teacher, tokens):
        logits = nnx.merge(fast, params)(tokens[:, :-1])
        target = nnx.merge(fast, teacher)(tokens[:, :-1])
        labels = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return (labels.mean() + js.distillation_loss(logits, target)) / 2

    def row(name, make):
        start = time.perf_counter()
        result = jax.block_until_ready(make())
        seconds, peak = time.perf_counter() - start, peak_memory()
        of = lambda pieces: perplexity(evaluate, result.params, pieces)
        cells = "".join(f"{of(pieces):10.2f}" for pieces in texts.values())
        print(f"{name:20}{cells}{seconds:9.1f}{peak:9.2f}", flush=True)
        return result

    tokens = args.steps * args.batch * calibration.shape[1]
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(f"calibrated on {calibration.size} tokens, trained on {tokens}")
    names = "".join(f"{name:>10}" for name in texts)
    print(f"{'perplexity':20}{names}{'seconds':>9}{'peak GiB':>9}")
    whole = row("dense", lambda: js.SearchResult(dense, None, js.Plan(())))
    tune = partial(train, teacher=dense, pieces=pieces, args=args)
    trained = f"  and {args.steps} steps"
    row(trained, lambda: tune(label_loss, whole, rate=DENSE_RATE))
    for pattern in args.pattern:
        make = exactly(partial(prune, forward, dense, pattern, calibration))
        pruned = row(f"{pattern}, SparseGPT", make)
        result = row(trained, partial(tune, both_losses, pruned, rate=RATE))
        js.check_sparsity(result.params, result.plan)
        print(f"\n{result.plan}")
        print(f"sparsity of all weights: {js.sparsity(result.params):.1%}\n")


if __name__ == "__main__":
    main()
