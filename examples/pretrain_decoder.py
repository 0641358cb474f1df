"""Trains a decoder from scratch, dense and sparse: transposable 2:4, by SR-STE.

    python examples/pretrain_decoder.py [--seeds 3] [--full]

Bytes of CPython's language reference, with `--full` also of the King James Bible and at
a size for a GPU; the last tenth of each is held out. The feed-forward layers are 2:4
along both axes of each matrix, so that the forward pass and the gradient of the input
can skip zeros, and the gradients of pruned weights let them decay, as published for
pre-training (arXiv:2404.01847). Kept weights are shrunk as in S-STE (arXiv:2409.09099).
For the last third of the steps the masks open, or they stay to the end.
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from decoder import Decoder, loss
from flax import nnx
from jax import lax
from pretrain_setup import LOOKS, OPEN, Recipes, arguments, load_pieces, print_table
from tqdm import tqdm

import jaxsparse as js


def optimizers(setting, plan):
    """AdamW, and the same after the decay of pruned weights."""
    # The rate falls only when the masks open: weights that come back still learn.
    warmup, opening = setting.steps // 10, setting.steps * OPEN // LOOKS
    rise = optax.linear_schedule(0.0, setting.rate, warmup)
    fall = optax.linear_schedule(setting.rate, 0.0, setting.steps - opening)
    rate = optax.join_schedules([rise, fall], [opening])
    clip, adamw = optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.1)
    decay = js.add_sr_ste_decay(plan, decay=setting.decay, every=setting.every)
    return optax.chain(clip, optax.identity(), adamw), optax.chain(clip, decay, adamw)


def soften(params, masks):
    """Sparse weights that change little when masks change, in the manner of S-STE.

    Kept weights lose the magnitude of the largest pruned one of their group along the
    input axis, so that those about to be pruned are small; a factor makes up for it.
    """

    def soft(weight, mask, kept):
        if mask is None:
            return weight
        *stack, inputs, outputs = weight.shape
        pruned = jnp.abs(weight - kept).reshape(*stack, inputs // 4, 4, outputs)
        largest = jnp.repeat(pruned.max(-2), 4, axis=-2)
        shrunk = jnp.sign(kept) * jax.nn.relu(jnp.abs(kept) - largest)
        fit, size = ((x * shrunk).sum((-2, -1), keepdims=True) for x in (kept, shrunk))
        return shrunk * (fit / size)

    return jax.tree.map(soft, params, masks, js.mask_params(params, masks))


def make_program(setting, mean_loss, tx, text, plan=None):
    """A compiled program of as many steps as there are keys; sparse with a plan."""

    def step(carry, key):
        params, state = carry
        starts = jax.random.randint(
            key, (setting.batch, 1), 0, len(text) - setting.length
        )
        tokens = text[starts + jnp.arange(setting.length + 1)].astype(jnp.int32)
        fn, seen = mean_loss, params
        if plan is not None:
            masks = js.get_masks(state)
            fn, seen = js.accelerate(fn, plan, masks=masks), soften(params, masks)
        value, gradients = jax.value_and_grad(fn)(seen, tokens)
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), value

    return jax.jit(partial(lax.scan, step), donate_argnums=0)


def train(program, carry, keys, bar, name):
    """Parameters and state after a program for each row of keys; seconds of each."""
    # Committed, as it is after a step, or the second call would compile again.
    carry = jax.device_put(carry, jax.devices()[0], may_alias=False)  # donated
    seconds = []
    for row in keys:
        start = time.perf_counter()
        carry, losses = program(carry, row)
        bits = float(losses[-1]) / np.log(2)
        seconds.append(time.perf_counter() - start)
        bar.set_description(name)
        bar.set_postfix(bits=f"{bits:.2f}")
        bar.update(len(row))
    return carry, seconds


def train_recipes(dense, sparse, params, keys):
    """The parameters of each recipe; seconds of both kinds of looks, but the first."""
    with tqdm(total=2 * keys.size + keys[OPEN:].size, unit="step") as bar:
        run = partial(train, bar=bar)
        (dense_tx, dense_program), (sparse_tx, sparse_program) = dense, sparse
        start = params, dense_tx.init(params)
        (whole, _), seconds = run(dense_program, start, keys, name="dense")
        start = params, sparse_tx.init(params)
        middle, sparse_seconds = run(sparse_program, start, keys[:OPEN], name="2:4")
        (stays, _), _ = run(sparse_program, middle, keys[OPEN:], name="2:4")
        opened, (clip, decay, adamw) = middle
        opened = soften(opened, js.get_masks(decay))
        start = opened, (clip, optax.EmptyState(), adamw)
        (opened, _), _ = run(dense_program, start, keys[OPEN:], name="then dense")
    return Recipes(whole, stays, opened), Recipes(seconds[1:], sparse_seconds[1:], None)


def main():
    """Trains every recipe for every seed and prints one table."""
    setting, args = arguments(__doc__)
    text, held_out = load_pieces(setting, args.full)
    # In a loop over stacked layers XLA copies large weights once more.
    new = partial(Decoder, setting.config, dtype=setting.dtype, stacked=not args.full)
    make = lambda seed: nnx.split(new(nnx.Rngs(seed)), nnx.Param)
    graph, params = make(0)
    mean_loss = lambda params, tokens: loss(nnx.merge(graph, params), tokens)
    rules = [js.Rule(args.layers, args.pattern)]
    plan = js.plan_sparsity(params, rules, fn=mean_loss, args=(held_out[0],))

    @jax.jit
    def bits_per_byte(params):
        return lax.map(partial(mean_loss, params), held_out).mean() / jnp.log(2)

    dense_tx, sparse_tx = optimizers(setting, plan)
    dense = dense_tx, make_program(setting, mean_loss, dense_tx, text)
    sparse = sparse_tx, make_program(setting, mean_loss, sparse_tx, text, plan)
    bits, seconds, sparsity = [], [], 0.0
    for seed in range(args.seeds):
        keys = jax.random.split(jax.random.key(seed), (LOOKS, setting.steps // LOOKS))
        trained, times = train_recipes(dense, sparse, make(seed)[1], keys)
        masks = js.create_masks(trained.sparse, plan)
        trained = trained._replace(sparse=soften(trained.sparse, masks))
        js.check_sparsity(trained.sparse, plan)
        sparsity = js.sparsity(trained.sparse)
        bits.append(Recipes(*(float(bits_per_byte(params)) for params in trained)))
        seconds.append(times)
    print(f"\n{plan}\nsparsity of all weights: {sparsity:.1%}")
    print_table(setting, bits, seconds)


if __name__ == "__main__":
    main()
