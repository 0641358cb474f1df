"""Prune a network until it hurts, and fine-tune it back, with Flax Linen.

    python examples/finetune_linen.py                 # digits of 8x8
    python examples/finetune_linen.py --data mnist5k  # digits of 28x28

Train dense, prune once, fine-tune under the masks: 2:4, 1:4 and 1:8, for five seeds, in
one compiled program. Beside them the dense network is trained equally longer: the
difference is what sparsity costs.
"""

import argparse
import time
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from finetune_report import plot, print_table
from flax import linen as nn
from flax.training.train_state import TrainState
from jax import lax
from real_data import load_images

import jaxsparse as js


BATCH = 50
PATTERNS = ("2:4", "1:4", "1:8")


class Network(nn.Module):
    """A narrow multilayer perceptron."""

    @nn.compact
    def __call__(self, x):
        """Maps images `(batch, height, width, 1)` to logits `(batch, 10)`."""
        x = x.reshape(x.shape[0], -1)
        for name in ("first", "second"):
            x = nn.relu(nn.Dense(32, name=name)(x))
        return nn.Dense(10, name="head")(x)


def forward(params, images) -> Any:
    """The logits, as a function of the parameters."""
    return Network().apply({"params": params}, images)


def accuracy(params, images, labels):
    """Accuracy in percent."""
    return 100 * jnp.mean(jnp.argmax(forward(params, images), -1) == labels)


def train(params, tx, key, data, epochs):
    """Trains the parameters, in a loop that is part of the compiled program."""
    (images, labels), _ = data
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    state = TrainState.create(apply_fn=forward, params=params, tx=tx)

    def step(state, batch):
        def loss(params):
            logits = forward(params, images[batch])
            return cross_entropy(logits, labels[batch]).mean()

        return state.apply_gradients(grads=jax.grad(loss)(state.params)), None

    def epoch(state, key):
        order = jax.random.permutation(key, len(labels))
        batches = order[: len(labels) // BATCH * BATCH].reshape(-1, BATCH)
        return lax.scan(step, state, batches)

    return lax.scan(epoch, state, jax.random.split(key, epochs))[0].params


def run(key, plans, data, epochs):
    """The recipe for one seed: accuracies by stage, and the sparse parameters."""
    (images, labels), held_out = data
    keys = jax.random.split(key, 3)
    params = Network().init(keys[0], images[:1])["params"]
    dense = train(params, optax.adamw(3e-3), keys[1], data, epochs)

    steps = epochs * (len(labels) // BATCH)
    tx = optax.adamw(optax.cosine_decay_schedule(3e-3, steps))
    longer = train(dense, tx, keys[2], data, epochs)
    results = {"dense": accuracy(dense, *held_out)}
    results["dense, trained as long"] = accuracy(longer, *held_out)
    tuned = {}
    for pattern, plan in plans.items():
        pruned = js.mask_params(dense, js.create_masks(dense, plan))
        results[f"{pattern}, one-shot"] = accuracy(pruned, *held_out)
        sparse_tx = js.wrap_optimizer(tx, plan)
        tuned[pattern] = train(pruned, sparse_tx, keys[2], data, epochs)
        results[f"{pattern}, fine-tuned"] = accuracy(tuned[pattern], *held_out)
    return results, tuned


def main():
    """Runs the recipe and prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=["digits", "mnist5k"], default="digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20, help="of each stage")
    parser.add_argument("--figure", type=Path, default=Path("out/finetune_linen.png"))
    parser.add_argument("--smoke", action="store_true", help="seconds, for tests")
    args = parser.parse_args()
    data = jax.tree.map(jnp.asarray, load_images(args.data))
    epochs = 2 if args.smoke else args.epochs

    images = data[0][0][:1]
    shapes = jax.eval_shape(Network().init, jax.random.key(0), images)["params"]
    plans = {
        pattern: js.plan_sparsity(shapes, pattern, fn=forward, args=(images,))
        for pattern in PATTERNS
    }
    print(plans["2:4"])

    start = time.perf_counter()
    keys = jax.random.split(jax.random.key(0), args.seeds)
    seeds = jax.jit(jax.vmap(lambda key: run(key, plans, data, epochs)))
    results, tuned = jax.tree.map(np.asarray, seeds(keys))
    seconds = time.perf_counter() - start
    for pattern, seed in product(plans, range(args.seeds)):
        params = jax.tree.map(itemgetter(seed), tuned[pattern])
        js.check_sparsity(params, plans[pattern])
    print(f"sparsity of all weights: {js.sparsity(tuned['2:4']):.1%}")

    print_table(results, PATTERNS)
    plot(results, PATTERNS, args.figure)
    print(f"\n{args.seeds} seeds in {seconds:.0f} seconds; figure: {args.figure}")


if __name__ == "__main__":
    main()
