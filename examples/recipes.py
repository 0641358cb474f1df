"""Six ways to a sparse network, trained from scratch in equally many steps.

    python examples/recipes.py                            # digits of 8x8
    python examples/recipes.py --data mnist5k --seeds 10  # digits of 28x28

A recipe is an optimizer, and for SR-STE also what the loss sees. Each run is one
compiled program: a scan over the steps, vmapped over the seeds, masks changing inside.
"""

from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax
from real_data import load_images
from recipes_report import arguments, plot, print_table
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


def forward(params, images):
    """Logits."""
    return jnp.asarray(MODEL.apply({"params": params}, images))


def recipes(steps):
    """By name: the pattern, the optimizer of a plan, and what the loss sees."""
    sgd = optax.sgd(optax.cosine_decay_schedule(0.1, steps), momentum=0.9)
    once, slowly = js.one_shot_schedule(steps // 2), js.cubic_schedule(0, steps // 2)
    fraction = optax.cosine_decay_schedule(0.3, 3 * steps // 4)
    asp = lambda plan, *_: js.wrap_optimizer(sgd, plan, schedule=once)
    gradual = lambda plan, *_: js.wrap_optimizer(sgd, plan, schedule=slowly)
    sr_ste = lambda plan, *_: optax.chain(js.add_sr_ste_decay(plan), sgd)

    def rigl(plan, params, key):
        masks = js.create_masks(params, plan, scores=js.random_scores(params, key))
        grow = {"fraction": fraction, "every": max(steps // 100, 1)}
        return js.regrow_by_gradient(sgd, plan, masks=masks, **grow)

    return {
        "dense": (None, lambda *_: sgd, None),
        "ASP, 2:4": ("2:4", asp, None),
        "gradual, 2:4": ("2:4", gradual, None),
        "SR-STE, 2:4": ("2:4", sr_ste, js.straight_through),
        "ASP, transposable 2:4": ("2:4 transposable", asp, None),
        "RigL, 90 %": (js.Unstructured(0.9), rigl, None),
    }


def plan_for(pattern, images):
    """The plan of the network, from its shapes alone; none for a dense one."""
    if pattern is None:
        return None
    params = jax.eval_shape(MODEL.init, jax.random.key(0), images)["params"]
    plan = js.plan_sparsity(params, pattern, fn=forward, args=(images,))
    unstructured = isinstance(pattern, js.Unstructured)
    return js.distribute_by_erdos_renyi(plan) if unstructured else plan


def flips(before, after):
    """The percentage of masked weights that two states keep differently."""
    masks = [jax.tree.leaves(js.get_masks(state)) for state in (before, after)]
    bits = [lax.population_count(a ^ b) for a, b in zip(*masks, strict=True)]
    changed = sum(b.sum(dtype="int32") for b in bits)
    return 100 * changed / sum(8 * b.size for b in bits)


def train(recipe, plan, data, steps, key):
    """Trains one seed: parameters, then accuracy and flips at each look."""
    _, optimizer, seen = recipe
    (images, labels), (held_out, expected) = jax.tree.map(jnp.asarray, data)
    init_key, mask_key, batch_key = jax.random.split(key, 3)
    params = MODEL.init(init_key, images[:1])["params"]
    tx = optimizer(plan, params, mask_key)
    network = (lambda params: params) if seen is None else lambda p: seen(p, plan)

    def loss(params, images, labels):
        logits = forward(network(params), images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(carry, index):
        params, state = carry
        step_key = jax.random.fold_in(batch_key, index)
        batch = jax.random.randint(step_key, (BATCH,), 0, len(labels))
        gradients = jax.grad(loss)(params, images[batch], labels[batch])
        updates, after = tx.update(gradients, state, params)
        changed = 0.0 if plan is None else flips(state, after)
        return (optax.apply_updates(params, updates), after), changed

    def look(carry, indices):
        carry, changed = lax.scan(step, carry, indices)
        logits = forward(network(carry[0]), held_out)
        right = jnp.argmax(logits, -1) == expected
        return carry, (100 * right.mean(), jnp.sum(changed))

    indices = jnp.arange(steps).reshape(LOOKS, -1)
    (params, _), (accuracy, changed) = lax.scan(
        look, (params, tx.init(params)), indices
    )
    return network(params), accuracy, changed


def main():
    """Runs every recipe and prints one table."""
    args = arguments(__doc__, LOOKS)
    data, steps = load_images(args.data), args.steps
    keys, results = jax.random.split(jax.random.key(0), args.seeds), {}
    for name, recipe in (bar := tqdm(recipes(steps).items())):
        bar.set_description(name)
        plan = plan_for(recipe[0], data[0][0][:1])
        run = partial(train, recipe, plan, data, steps)
        params, accuracy, changed = jax.jit(jax.vmap(run))(keys)
        results[name] = np.asarray(accuracy), np.asarray(changed)
        if plan is not None:
            for seed in range(args.seeds):
                js.check_sparsity(jax.tree.map(itemgetter(seed), params), plan)
            print(f"\n{name}\n{plan}")
            print(f"sparsity of all weights: {js.sparsity(params):.1%}")
    print_table({name: accuracy[:, -1] for name, (accuracy, _) in results.items()})
    plot(results, np.arange(LOOKS) * (steps // LOOKS) + steps // LOOKS, args.figure)
    print(f"\nfigure: {args.figure}")


if __name__ == "__main__":
    main()
