"""Six ways to a sparse network, trained from scratch in equally many steps.

    python examples/recipes.py                            # digits of 8x8
    python examples/recipes.py --data mnist5k --seeds 10  # digits of 28x28

A recipe is an optimizer, and for SR-STE also what the loss sees. Each run is one
compiled program: a scan over the steps, vmapped over the seeds, masks changing inside.
"""

import argparse
from functools import partial
from operator import itemgetter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax
from real_data import load_images
from recipes_report import plot, print_table
from tqdm import tqdm

import jaxsparse as js


BATCH, LOOKS = 100, 40


class Network(nn.Module):
    """Three dense layers."""

    @nn.compact
    def __call__(self, x):
        """Maps images to logits `(batch, 10)`."""
        x = x.reshape(x.shape[0], -1)
        for width in (256, 128):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10, name="head")(x)


MODEL = Network()


def recipes(steps):
    """By name: the pattern, the optimizer of a plan, and what the loss sees."""
    sgd = optax.sgd(optax.cosine_decay_schedule(0.1, steps), momentum=0.9)
    once, slowly = js.one_shot_schedule(steps // 2), js.cubic_schedule(0, steps // 2)
    fraction = optax.cosine_decay_schedule(0.3, 3 * steps // 4)
    both = js.NM(2, 4)
    asp = lambda plan, *_: js.wrap_optimizer(sgd, plan, schedule=once)
    gradual = lambda plan, *_: js.wrap_optimizer(sgd, plan, schedule=slowly)
    sr_ste = lambda plan, *_: optax.chain(js.add_sr_ste_decay(plan), sgd)

    def rigl(plan, params, key):
        masks = js.create_masks(params, plan, scores=js.random_scores(params, key))
        return js.regrow_by_gradient(
            sgd, plan, masks=masks, fraction=fraction, every=max(steps // 100, 1)
        )

    return {
        "dense": (None, lambda *_: sgd, None),
        "ASP, 2:4": ("2:4", asp, None),
        "gradual, 2:4": ("2:4", gradual, None),
        "SR-STE, 2:4": ("2:4", sr_ste, js.straight_through),
        "ASP, transposable 2:4": (both, asp, None),
        "RigL, 90 %": (js.Unstructured(0.9), rigl, None),
    }


def plan_for(pattern, images):
    """The plan of the network, from its shapes alone."""
    params = jax.eval_shape(MODEL.init, jax.random.key(0), images)["params"]
    forward = lambda params, images: MODEL.apply({"params": params}, images)
    plan = js.plan_sparsity(params, pattern, fn=forward, args=(images,))
    unstructured = isinstance(pattern, js.Unstructured)
    return js.distribute_by_erdos_renyi(plan) if unstructured else plan


def flips(before, after):
    """The number of weights that two states' masks keep differently."""
    pairs = zip(*map(jax.tree.leaves, map(js.get_masks, (before, after))), strict=True)
    return sum(lax.population_count(a ^ b).sum(dtype="int32") for a, b in pairs)


def train(recipe, plan, data, steps, key):
    """Trains one seed: parameters, then accuracy and flips at each look."""
    _, optimizer, seen = recipe
    (images, labels), (held_out, expected) = jax.tree.map(jnp.asarray, data)
    init_key, mask_key, batch_key = jax.random.split(key, 3)
    params = MODEL.init(init_key, images[:1])["params"]
    tx = optimizer(plan, params, mask_key)
    network = (lambda params: params) if seen is None else lambda p: seen(p, plan)

    def loss(params, images, labels):
        logits = MODEL.apply({"params": network(params)}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(carry, index):
        params, state = carry
        batch = jax.random.randint(
            jax.random.fold_in(batch_key, index), (BATCH,), 0, len(labels)
        )
        gradients = jax.grad(loss)(params, images[batch], labels[batch])
        updates, after = tx.update(gradients, state, params)
        changed = 0 if plan is None else flips(state, after)
        return (optax.apply_updates(params, updates), after), changed

    def look(carry, indices):
        carry, changed = lax.scan(step, carry, indices)
        logits = MODEL.apply({"params": network(carry[0])}, held_out)
        right = jnp.argmax(logits, -1) == expected
        return carry, (100 * right.mean(), jnp.sum(changed))

    indices = jnp.arange(steps).reshape(LOOKS, -1)
    (params, _), (accuracy, changed) = lax.scan(
        look, (params, tx.init(params)), indices
    )
    return network(params), accuracy, changed


def main():
    """Runs every recipe and prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=["digits", "mnist5k"], default="digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--figure", type=Path, default=Path("recipes.png"))
    parser.add_argument("--smoke", action="store_true", help="seconds, for tests")
    args = parser.parse_args()
    data, steps = load_images(args.data), 2 * LOOKS if args.smoke else args.steps
    steps -= steps % LOOKS
    keys, results = jax.random.split(jax.random.key(0), args.seeds), {}
    for name, recipe in (bar := tqdm(recipes(steps).items())):
        bar.set_description(name)
        plan = None if recipe[0] is None else plan_for(recipe[0], data[0][0][:1])
        run = partial(train, recipe, plan, data, steps)
        params, accuracy, changed = jax.jit(jax.vmap(run))(keys)
        for seed in range(args.seeds if plan else 0):
            js.check_sparsity(jax.tree.map(itemgetter(seed), params), plan)
        planned = sum(leaf.size for leaf in jax.tree.leaves(params)) / args.seeds
        results[name] = np.asarray(accuracy), np.asarray(changed) / planned
        if plan:
            print(
                f"\n{name}\n{plan}\nsparsity of all weights: {js.sparsity(params):.1%}"
            )
    print_table({name: accuracy[:, -1] for name, (accuracy, _) in results.items()})
    plot(results, np.arange(LOOKS) * (steps // LOOKS) + steps // LOOKS, args.figure)
    print(f"\nfigure: {args.figure}")


if __name__ == "__main__":
    main()
