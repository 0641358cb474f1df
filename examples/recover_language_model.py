"""Prunes a pretrained language model, and trains it back with its masks held.

    python examples/recover_language_model.py [--full] [--train FILE ...]

SmolLM2-135M, pruned by SparseGPT on the first halves of two texts, the King James Bible
and CPython's language reference. The weights that are kept are then trained on these
and on `--train` files: on each next token, and on what the dense model predicts. With
`--learn` better masks are learned before, from SparseGPT's, with the weights frozen;
with `--tune` the dense model is trained before it is pruned and teaches. For comparison
the dense model is trained for all these steps. Both are evaluated on the
second halves and on `--text` files, which nothing is trained on: pieces that share
thirteen tokens in a row with them are left out of the training. `--full` is for a GPU.
Seconds include compilation.
"""

import argparse
from functools import partial

import jax
import optax
from decoder import loss
from flax import nnx
from learn_masks import learn
from perplexity_row import print_row
from recovery import (
    both_losses,
    calibrate,
    exactly,
    load_models,
    load_pieces,
    make_parser,
    print_header,
)
from training_text import mixed_batches

import jaxsparse as js


RATE, DENSE_RATE = 1e-3, 1e-4  # pruned weights have further to go
LOGITS_RATE = 5e-4  # of learning masks


def train(mean_loss, result, teacher, pieces, batch, steps, rate):
    """Adam with a cosine schedule; masks hold pruned weights at zero."""
    warmup = min(20, steps // 4)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warmup, steps)
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
    for tokens in mixed_batches(own, others, batch, steps):
        params, state = step(params, state, teacher, tokens)
    return result._replace(params=params)


def main():
    """Prunes, trains and prints one table."""
    parser = make_parser(__doc__)
    parser.add_argument("--pattern", nargs="*", default=["2:4"])
    parser.add_argument("--learn", type=int, default=0, metavar="STEPS")
    parser.add_argument("--tune", type=int, default=0, metavar="STEPS")
    parser.add_argument("--rate", type=float, default=RATE, help="for pruned weights")
    parser.add_argument("--dense", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    sizes = (128, 110, 32, 1200) if args.full else (16, 6, 2, 12)
    calibrated, evaluated, batch, steps = sizes
    steps = args.steps or steps
    calibration, *pieces, texts = load_pieces(args, calibrated, evaluated)
    model, fast_model = load_models(args)
    graph, dense = nnx.split(model, nnx.Param)
    fast, _ = nnx.split(fast_model, nnx.Param)

    forward = lambda params, tokens: nnx.merge(graph, params)(tokens)
    evaluate = jax.jit(exactly(lambda params, x: loss(nnx.merge(graph, params), x)))

    def label_loss(params, _, tokens):
        return loss(nnx.merge(fast, params), tokens)

    def prune(pattern):
        plan, statistics = calibrate(forward, dense, pattern, calibration)
        return js.SparseGPTSearcher(plan).search(dense, statistics)

    def learn_masks(pruned):
        prior = js.init_mask_logits(dense, pruned.plan, masks=pruned.masks)
        logits = learn(distilled, dense, prior, pieces, batch, args.learn, LOGITS_RATE)
        masks = js.learned_masks(logits)
        return js.SearchResult(js.mask_params(dense, masks), masks, pruned.plan)

    longer = args.tune + args.learn + steps
    print_header(calibration, batch * longer, texts)
    row = partial(print_row, evaluate, texts)
    whole = row("dense", lambda: js.SearchResult(dense, None, js.Plan(())))
    tune = partial(train, pieces=pieces, batch=batch)
    distilled = partial(both_losses, fast)

    def tuned_dense(steps):
        how = partial(tune, label_loss, whole, dense, steps=steps, rate=DENSE_RATE)
        return row(f"  and {steps} steps", how)

    if args.dense:
        tuned_dense(longer)
    if args.tune:
        dense = tuned_dense(args.tune).params
    for pattern in args.pattern:
        result = row(f"{pattern}, SparseGPT", exactly(partial(prune, pattern)))
        if args.learn:
            result = row(f"  {args.learn} steps, masks", partial(learn_masks, result))
        how = partial(tune, distilled, result, dense, steps=steps, rate=args.rate)
        result = row(f"  and {steps} steps", how)
        js.check_sparsity(result.params, result.plan)
        print(f"\n{result.plan}")
        print(f"sparsity of all weights: {js.sparsity(result.params):.1%}\n")


if __name__ == "__main__":
    main()
