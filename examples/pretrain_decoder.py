"""Trains a decoder from scratch, dense and sparse: transposable 2:4, by SR-STE.

    python examples/pretrain_decoder.py [--seeds 3] [--full]

Bytes of CPython's language reference, with `--full` also of the King James Bible and at
a size for a GPU; the last tenth of each is held out. The blocks are 2:4 along both axes
of each matrix, so that the forward pass and the gradient of the input can skip zeros,
and the gradients of pruned weights let them decay. For the last sixth of the steps the
masks open, as published for pre-training (arXiv:2404.01847), or they stay to the end.
"""

import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from decoder import Decoder, loss
from flax import nnx
from jax import lax
from pretrain_setup import LOOKS, arguments, load_pieces, print_table
from tqdm import tqdm

import jaxsparse as js


# Of LOOKS, those in which the model is sparse.
RECIPES = {"dense": 0, "2:4": LOOKS, "2:4, then dense": LOOKS * 5 // 6}


class Run(NamedTuple):
    """What training gave, and how fast it was while the model was sparse, if it was."""

    bits: float
    tokens_per_second: float


def optimizer(setting, plan, sparse_steps):
    """AdamW, before it the decay of pruned weights while there are some."""
    rate = optax.warmup_cosine_decay_schedule(
        0.0, setting.rate, setting.steps // 10, setting.steps
    )
    decay = js.add_sr_ste_decay(
        plan,
        decay=setting.decay,
        schedule=js.one_shot_schedule(0, end=sparse_steps),
        every=setting.every,
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        decay if sparse_steps else optax.identity(),
        optax.adamw(rate, b2=0.95, weight_decay=0.1),
    )


def make_program(setting, mean_loss, tx, text, plan=None):
    """A compiled program of as many steps as there are keys; with a plan, of sparse ones.

    On a GPU that has a kernel for it, their products are accelerated.
    """

    def step(carry, key):
        params, state = carry
        starts = jax.random.randint(
            key, (setting.batch, 1), 0, len(text) - setting.length
        )
        tokens = text[starts + jnp.arange(setting.length + 1)].astype(jnp.int32)
        fn = mean_loss
        if plan is not None:
            masks = js.get_masks(state)
            fast = js.accelerate(mean_loss, plan, masks=masks)
            fn = lambda params, *args: fast(js.straight_through(params, masks), *args)
        value, gradients = jax.value_and_grad(fn)(params, tokens)
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), value

    return jax.jit(partial(lax.scan, step), donate_argnums=0)


def make_trainer(setting, plan, mean_loss, text, sparse_looks):
    """A function of parameters and a key, which trains them."""
    look = setting.steps // LOOKS
    tx = optimizer(setting, plan, sparse_looks * look)
    make = partial(make_program, setting, mean_loss, tx, text)
    programs = {True: make(plan), False: make()}

    def train(params, key, bar):
        carry, seconds = jax.device_put((params, tx.init(params)), jax.devices()[0]), []
        for index in range(LOOKS):
            keys = jax.random.split(jax.random.fold_in(key, index), look)
            start = time.perf_counter()
            carry, losses = programs[index < sparse_looks](carry, keys)
            bar.set_postfix(bits=f"{losses[-1] / np.log(2):.2f}")
            seconds.append(time.perf_counter() - start)
            bar.update(look)
        timed = seconds[1 : sparse_looks or LOOKS]  # the first compiles
        tokens = look * setting.batch * setting.length
        return carry[0], tokens / np.median(timed)

    return train


def main():
    """Trains every recipe for every seed and prints one table."""
    setting, args = arguments(__doc__)
    text, held_out = load_pieces(setting, args.full)
    make = lambda seed: nnx.split(
        Decoder(setting.config, nnx.Rngs(seed), setting.dtype, stacked=True), nnx.Param
    )
    graph, params = make(0)
    mean_loss = lambda params, tokens: loss(nnx.merge(graph, params), tokens)
    plan = js.plan_sparsity(params, args.pattern, fn=mean_loss, args=(held_out[0],))

    @jax.jit
    def evaluate(params):
        return lax.map(partial(mean_loss, params), held_out).mean() / jnp.log(2)

    results = {}
    for name, sparse_looks in RECIPES.items():
        train = make_trainer(setting, plan, mean_loss, text, sparse_looks)
        results[name] = []
        for seed in range(args.seeds):
            with tqdm(total=setting.steps, desc=f"{name}, seed {seed}") as bar:
                params, speed = train(make(seed)[1], jax.random.key(seed), bar)
            if sparse_looks == LOOKS:
                params = js.mask_params(params, js.create_masks(params, plan))
                js.check_sparsity(params, plan)
                sparsity = js.sparsity(params)
            results[name].append(Run(float(evaluate(params)), speed))
    print(f"\n{plan}\nsparsity of all weights: {sparsity:.1%}")
    print_table(results)


if __name__ == "__main__":
    main()
