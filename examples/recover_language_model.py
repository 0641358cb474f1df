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

from functools import partial

import jax
import optax
from decoder import loss
from flax import nnx
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


def main():
    """Prunes, trains and prints one table."""
    parser = make_parser(__doc__)
    parser.add_argument("--pattern", nargs="+", default=["2:4"])
    args = parser.parse_args()
    sizes = (128, 110, 32, 1200) if args.full else (16, 8, 2, 20)
    calibrated, evaluated, args.batch, steps = sizes
    args.steps = args.steps or steps
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

    print_header(calibration, args, texts)
    row = partial(print_row, evaluate, texts)
    whole = row("dense", lambda: js.SearchResult(dense, None, js.Plan(())))
    tune = partial(train, teacher=dense, pieces=pieces, args=args)
    trained = f"  and {args.steps} steps"
    row(trained, lambda: tune(label_loss, whole, rate=DENSE_RATE))
    for pattern in args.pattern:
        pruned = row(f"{pattern}, SparseGPT", exactly(partial(prune, pattern)))
        result = row(
            trained, partial(tune, partial(both_losses, fast), pruned, rate=RATE)
        )
        js.check_sparsity(result.params, result.plan)
        print(f"\n{result.plan}")
        print(f"sparsity of all weights: {js.sparsity(result.params):.1%}\n")


if __name__ == "__main__":
    main()
