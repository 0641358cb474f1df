"""Prune a convolutional network 2:4 and fine-tune it, exactly sparse, with Flax Linen.

    python examples/finetune_linen.py                           # digits of 8x8
    python examples/finetune_linen.py --data mnist5k --seeds 5  # digits of 28x28

Train dense, prune once, fine-tune under the masks. Beside it the dense network is
trained equally longer, so that the difference shows what sparsity costs.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import linen as nn
from flax.training.train_state import TrainState
from real_data import load_images
from tqdm import tqdm

import jaxsparse as js


BATCH = 100
STAGES = ("dense", "2:4, one-shot", "2:4, fine-tuned", "dense, trained as long")


class Network(nn.Module):
    """Two convolutions and two dense layers; inputs and outputs wide enough for 2:4."""

    @nn.compact
    def __call__(self, x):
        """Maps images `(batch, height, width, 1)` to logits `(batch, 10)`."""
        for channels in (32, 64):
            x = nn.relu(nn.Conv(channels, (3, 3))(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(128)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10, name="head")(x)


@jax.jit
def train_step(state, images, labels):
    """One update."""

    def loss(params):
        logits = state.apply_fn({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return state.apply_gradients(grads=jax.grad(loss)(state.params))


@jax.jit
def accuracy(state, images, labels):
    """Accuracy in percent."""
    logits = state.apply_fn({"params": state.params}, images)
    return 100 * (jnp.argmax(logits, -1) == labels).mean()


def train(name, state, data, epochs, seed):
    """Trains with a progress bar; returns the state and the accuracy of each epoch."""
    (images, labels), test = data
    shuffle, curve = np.random.default_rng(seed), []
    for _ in (bar := tqdm(range(epochs), desc=name, unit="epoch")):
        order = shuffle.permutation(len(labels))
        for batch in order[: len(order) // BATCH * BATCH].reshape(-1, BATCH):
            state = train_step(state, images[batch], labels[batch])
        curve.append(float(accuracy(state, *test)))
        bar.set_postfix(accuracy=f"{curve[-1]:.1f}%")
    return state, curve


def run(data, epochs, seed):
    """The recipe, once: accuracy of each stage, their curves, the sparse state."""
    model, (images, labels) = Network(), data[0]

    def state_of(params, tx):
        return TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    params = model.init(jax.random.key(seed), images[:1])["params"]
    dense, before = train(
        STAGES[0], state_of(params, optax.adamw(1e-3)), data, epochs, seed
    )

    forward = lambda params, images: model.apply({"params": params}, images)
    plan = js.plan_sparsity(dense.params, "2:4", fn=forward, args=(images[:1],))
    tx = optax.adamw(optax.cosine_decay_schedule(1e-3, epochs * len(labels) // BATCH))
    pruned = js.mask_params(dense.params, js.create_masks(dense.params, plan))
    sparse = state_of(pruned, js.wrap_optimizer(tx, plan))
    one_shot = float(accuracy(sparse, *data[1]))

    sparse, tuned = train(STAGES[2], sparse, data, epochs, seed + 1)
    js.check_sparsity(sparse.params, plan)
    longer = train(STAGES[3], state_of(dense.params, tx), data, epochs, seed + 1)[1]
    curves = before, [one_shot, *tuned], [before[-1], *longer]
    return (before[-1], one_shot, tuned[-1], longer[-1]), curves, sparse.params, plan


def plot(curves, path):
    """Accuracy over epochs: the mean of the seeds, with each seed behind it."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    before, tuned, longer = (np.array(curve).T for curve in zip(*curves, strict=True))
    for label, first, curve, color in (
        ("dense", 1, before, "tab:gray"),
        (STAGES[3], len(before), longer, "black"),
        (STAGES[2], len(before), tuned, "tab:green"),
    ):
        epochs = range(first, first + len(curve))
        axes.plot(epochs, curve, color=color, alpha=0.2, linewidth=0.8)
        axes.plot(epochs, curve.mean(1), color=color, label=label)
    axes.axvline(len(before), color="tab:red", linestyle=":", label="pruned")
    axes.set(xlabel="epoch", ylabel="held-out accuracy (%)")
    axes.set_ylim(top=100.5)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=100)


def main():
    """Runs the recipe and prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=["digits", "mnist5k"], default="digits")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=20, help="of each stage")
    parser.add_argument("--figure", type=Path, default=Path("finetune_linen.png"))
    parser.add_argument("--smoke", action="store_true", help="seconds, for tests")
    args = parser.parse_args()
    data, epochs = load_images(args.data), 2 if args.smoke else args.epochs

    runs = [run(data, epochs, 10 * seed) for seed in range(args.seeds)]
    results, curves, params, plans = zip(*runs, strict=True)
    plot(curves, args.figure)
    print(f"\n{plans[0]}\nsparsity of all weights: {js.sparsity(params[0]):.1%}")
    print(f"\n{'held-out accuracy (%)':24}   mean  by seed")
    columns = np.array(results).T
    columns = [*columns, columns[2] - columns[3]]
    for name, column in zip([*STAGES, "fine-tuned minus dense"], columns, strict=True):
        by_seed = " ".join(f"{value:6.2f}" for value in column)
        print(f"{name:24} {column.mean():6.2f}  {by_seed}")
    print(f"\nfigure: {args.figure}")


if __name__ == "__main__":
    main()
