"""Learns the masks of a pretrained language model; its weights stay as they are.

    python examples/learn_masks.py [--full] [--train FILE ...]

SmolLM2-135M. Wanda and SparseGPT choose masks on the first halves of two texts, the
King James Bible and CPython's language reference. SparseGPT's are then the prior of
masks that are learned on these and on `--train` files: on each next token, and on what
the dense model predicts. Hard masks are evaluated in float32 on the second halves and
on `--text` files, which nothing is trained on: pieces that share thirteen tokens in a
row with them are left out of the training. SparseGPT has a second row, with the weights
that it fits to its mask. `--full` is for a GPU. Seconds include compilation, as does
the time of the first step.
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
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


# MaskLLM's schedules, and its reward for what remains of the weights.
TEMPERATURE, SCALE, REWARD = (4.0, 0.05), (100.0, 500.0), 1e-5
KEY = jax.random.key(0)


def learn(mean_loss, dense, logits, pieces, batch, steps, rate):
    """Adam on the logits of the patterns; prints how fast it goes."""
    temperature = optax.linear_schedule(*TEMPERATURE, steps)
    scale = optax.linear_schedule(*SCALE, steps)
    tx = optax.adam(optax.linear_schedule(rate, rate / 10, steps))

    def soft_loss(logits, dense, tokens, i):
        masks = js.learned_masks(
            logits,
            key=jax.random.fold_in(KEY, i),
            temperature=temperature(i),
            scale=scale(i),
        )
        soft = jax.tree.map(lambda w, m: w if m is None else w * m, dense, masks)
        value = mean_loss(soft, dense, tokens)
        return value - REWARD * optax.tree.norm(soft, squared=True), value

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(logits, state, dense, tokens, i):
        gradients, value = jax.grad(soft_loss, has_aux=True)(logits, dense, tokens, i)
        updates, state = tx.update(gradients, state)
        return optax.apply_updates(logits, updates), state, value

    # Committed, as they are after a step, or the second step would compile again.
    logits = jax.device_put(logits, jax.devices()[0], may_alias=False)  # donated
    state = jax.device_put(tx.init(logits), jax.devices()[0])
    start, last = time.perf_counter(), 0
    own, others = pieces
    for i, tokens in enumerate(mixed_batches(own, others, batch, steps), 1):
        logits, state, value = step(logits, state, dense, tokens, i - 1)
        if i in (1, 20) or i % 100 == 0:
            value, now = float(value), time.perf_counter()  # float waits for the step
            milliseconds = 1000 * (now - start) / (i - last)
            print(f"  step {i}: {milliseconds:.0f} ms, loss {value:.3f}", flush=True)
            start, last = now, i
    return logits


def changed(before, after):
    """The share of groups with another pattern."""
    other = lambda a, b: jnp.ravel(a.argmax(-1) != b.argmax(-1))
    return jnp.concatenate(jax.tree.leaves(jax.tree.map(other, before, after))).mean()


def main():
    """Prunes, learns masks and prints one table."""
    parser = make_parser(__doc__)
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--batch", type=int, default=None, help="pieces a step")
    parser.add_argument("--rate", type=float, default=None, help="of learning")
    args = parser.parse_args()
    # Logits of few steps have as far to go.
    sizes = (128, 110, 32, 1600, 5e-4) if args.full else (16, 8, 2, 20, 2e-2)
    calibrated, evaluated, batch, steps, rate = sizes
    batch, steps = args.batch or batch, args.steps or steps
    calibration, *pieces, texts = load_pieces(args, calibrated, evaluated)
    model, fast_model = load_models(args)
    graph, dense = nnx.split(model, nnx.Param)
    fast, _ = nnx.split(fast_model, nnx.Param)
    dense = jax.device_put(dense, jax.devices()[0])  # committed, as what is made of it
    forward = lambda params, tokens: nnx.merge(graph, params)(tokens)
    evaluate = jax.jit(exactly(lambda params, x: loss(nnx.merge(graph, params), x)))

    print_header(calibration, batch * steps, texts)
    row = partial(print_row, evaluate, texts)
    row("dense", lambda: js.SearchResult(dense, None, js.Plan(())))
    start = time.perf_counter()
    plan, statistics = exactly(calibrate)(forward, dense, args.pattern, calibration)
    print(f"  statistics: {time.perf_counter() - start:.1f} seconds", flush=True)
    wanda, sparsegpt = js.WandaSearcher(plan), js.SparseGPTSearcher(plan)
    row("Wanda's mask", exactly(lambda: wanda.search(dense, statistics)))
    fitted = row("SparseGPT", exactly(lambda: sparsegpt.search(dense, statistics)))

    def masked(masks):
        return js.SearchResult(js.mask_params(dense, masks), masks, plan)

    row("SparseGPT's mask", lambda: masked(fitted.masks))
    prior = js.init_mask_logits(dense, plan, masks=fitted.masks)
    distilled = partial(both_losses, fast)
    logits = learn(distilled, dense, prior, pieces, batch, steps, args.rate or rate)
    name = f"learned, {steps} steps"
    result = row(name, lambda: masked(js.learned_masks(logits)))
    js.check_sparsity(result.params, plan)
    print(f"groups with another pattern: {changed(prior, logits):.1%}")
    print(f"\n{plan}")
    print(f"sparsity of all weights: {js.sparsity(result.params):.1%}\n")


if __name__ == "__main__":
    main()
