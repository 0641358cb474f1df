"""Take half of the channels out of a convolutional network, with Flax Linen.

    python examples/shrink_images.py                 # digits of 8x8
    python examples/shrink_images.py --data mnist5k  # digits of 28x28

Train dense, take half of the channels of every convolution and half of the hidden
layer out, refit what is left by what it reads, without labels, and train one epoch.
The smaller network is the same module with smaller `features`.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax
from real_data import load_images

import jaxsparse as js


BATCH = 50


class Network(nn.Module):
    """Two convolutions with batch normalisation, and a hidden layer."""

    features: tuple[int, int, int] = (32, 64, 128)

    @nn.compact
    def __call__(self, x, train=False):
        """Maps images `(batch, height, width, 1)` to logits `(batch, 10)`."""
        *channels, hidden = self.features
        for size in channels:
            x = nn.Conv(size, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(hidden)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


def features_of(variables):
    """The `features` that fit the shapes of the weights."""
    layers = variables["params"]
    names = ("Conv_0", "Conv_1", "Dense_0")
    return tuple(layers[name]["kernel"].shape[-1] for name in names)


@jax.jit
def predict(variables, images):
    """The logits; `variables` may be smaller ones."""
    return Network(features_of(variables)).apply(variables, images)


def accuracy(variables, images, labels):
    """Accuracy in percent."""
    return 100 * float(jnp.mean(jnp.argmax(predict(variables, images), -1) == labels))


@partial(jax.jit, static_argnames=("epochs", "rate"))
def train(variables, key, images, labels, epochs, rate):
    """AdamW with a cosine schedule; running statistics are updated too."""
    model = Network(features_of(variables))
    steps = epochs * (len(labels) // BATCH)
    tx = optax.adamw(optax.cosine_decay_schedule(rate, steps))

    def step(carry, batch):
        variables, state = carry

        def loss(params):
            logits, updated = model.apply(
                {**variables, "params": params},
                images[batch],
                True,
                mutable="batch_stats",
            )
            cross_entropy = optax.softmax_cross_entropy_with_integer_labels
            return cross_entropy(logits, labels[batch]).mean(), updated

        params = variables["params"]
        gradients, updated = jax.grad(loss, has_aux=True)(params)
        updates, state = tx.update(gradients, state, params)
        return (
            {"params": optax.apply_updates(params, updates), **updated},
            state,
        ), None

    orders = jax.vmap(lambda key: jax.random.permutation(key, len(labels)))(
        jax.random.split(key, epochs)
    )
    batches = orders[:, : len(labels) // BATCH * BATCH].reshape(-1, BATCH)
    carry, _ = lax.scan(step, (variables, tx.init(variables["params"])), batches)
    return carry[0]


def shrink(key, network, data, epochs):
    """Half of the channels of a network: the result, and the variables by stage."""
    keys, example = jax.random.split(key, 3), (data[0][:1],)
    dense = train(network.init(keys[0], *example), keys[1], *data, epochs, 3e-3)
    plan = js.plan_sparsity(
        dense, js.Unstructured(0.5), fn=predict, args=example, dense_head=False
    )
    statistics = js.collect_statistics(predict, dense, [data[0]], plan=plan)
    half = partial(js.shrink_params, dense, predict, example, sparsity=0.5)
    result = half(statistics=statistics)
    return result, {
        "dense": dense,
        "half of the channels": half(statistics=statistics, shrinkage=1.0).params,
        "  refitted": result.params,
        "  and one epoch": train(result.params, keys[2], *data, 1, 3e-4),
    }


def main():
    """Trains, shrinks, refits and prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=["digits", "mnist5k"], default="digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15, help="of the dense network")
    parser.add_argument("--smoke", action="store_true", help="seconds, for tests")
    args = parser.parse_args()
    seeds, epochs = (1, 1) if args.smoke else (args.seeds, args.epochs)
    network = Network((16, 32, 64)) if args.smoke else Network()
    data, held_out = jax.tree.map(jnp.asarray, load_images(args.data))
    accuracies = {}
    for key in jax.random.split(jax.random.key(0), seeds):
        result, stages = shrink(key, network, data, epochs)
        for name, variables in stages.items():
            accuracies.setdefault(name, []).append(accuracy(variables, *held_out))
        if len(accuracies["dense"]) == 1:
            before, after = features_of(stages["dense"]), features_of(result.params)
            print(f"{result}\n\nfeatures: {before} -> {after}")
    print(f"\n{'held-out accuracy, %':24}{'mean':>8}{'lowest':>8}")
    for name, values in accuracies.items():
        print(f"{name:24}{np.mean(values):8.2f}{min(values):8.2f}")


if __name__ == "__main__":
    main()
