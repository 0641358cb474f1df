"""Prune an Equinox network 2:4 and fine-tune it: jaxsparse without Flax.

    python examples/equinox_mlp.py

Equinox keeps weights as `(out, in)`, and nothing has to be said about that: the plan
reads from the loss which axis each product sums over.
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from real_data import load_images
from tqdm import tqdm

import jaxsparse as js


BATCH = 100


def loss(model, images, labels):
    """Mean cross-entropy."""
    logits = jax.vmap(model)(images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@eqx.filter_jit
def accuracy(model, images, labels):
    """Accuracy in percent."""
    return 100 * (jnp.argmax(jax.vmap(model)(images), -1) == labels).mean()


def train(name, model, tx, data, epochs):
    """Trains with a progress bar."""
    images, labels = data

    @eqx.filter_jit
    def step(model, state, images, labels):
        grads = eqx.filter_grad(loss)(model, images, labels)
        params = eqx.filter(model, eqx.is_array)
        updates, state = tx.update(grads, state, params)
        return eqx.apply_updates(model, updates), state

    state, rng = tx.init(eqx.filter(model, eqx.is_array)), np.random.default_rng(0)
    for _ in tqdm(range(epochs), desc=name, unit="epoch"):
        order = rng.permutation(len(labels))
        for batch in order[: len(order) // BATCH * BATCH].reshape(-1, BATCH):
            model, state = step(model, state, images[batch], labels[batch])
    return model


def main():
    """Trains, prunes, fine-tunes and prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=30, help="of each stage")
    parser.add_argument("--smoke", action="store_true", help="seconds, for tests")
    args = parser.parse_args()
    epochs = 2 if args.smoke else args.epochs
    (images, labels), (test_images, test_labels) = load_images("digits")
    data = images.reshape(-1, 64), labels
    test = test_images.reshape(-1, 64), test_labels

    dense = eqx.nn.MLP(64, 10, 128, 2, key=jax.random.key(0))
    dense = train("dense", dense, optax.adamw(1e-3), data, epochs)

    plan = js.plan_sparsity(dense, "2:4", fn=loss, args=(data[0][:1], data[1][:1]))
    pruned = js.mask_params(dense, js.create_masks(dense, plan))
    tx = js.wrap_optimizer(optax.adamw(1e-3), plan)
    tuned = train("2:4, fine-tuned", pruned, tx, data, epochs)
    js.check_sparsity(tuned, plan)

    print(f"\n{plan}\nsparsity of all weights: {js.sparsity(tuned):.1%}")
    print(f"\n{'held-out accuracy':24} {'%':>6}")
    stages = {"dense": dense, "2:4, one-shot": pruned, "2:4, fine-tuned": tuned}
    for name, model in stages.items():
        print(f"{name:24} {accuracy(model, *test):6.2f}")


if __name__ == "__main__":
    main()
