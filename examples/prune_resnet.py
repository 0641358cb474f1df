"""Prune a residual network with batch normalisation, and renew its statistics.

    python examples/prune_resnet.py                 # digits of 8x8
    python examples/prune_resnet.py --data mnist5k  # digits of 28x28

A network is pruned by magnitude and by SparseGPT. Its means and variances are then
those of another network: `recalibrate_batch_stats` measures them anew, on training
images and without labels. At last it is trained for an epoch with its masks held.
"""

import argparse
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from real_data import load_images

import jaxsparse as js


BATCH = 50
PATTERNS = ("2:4", "1:4", "1:8")


class ResNet(nn.Module):
    """Three residual blocks of two convolutions, each with batch normalisation."""

    @nn.compact
    def __call__(self, x, train=False):
        """Maps images `(batch, height, width, 1)` to logits `(batch, 10)`."""
        conv = partial(nn.Conv, kernel_size=(3, 3), use_bias=False)
        norm = partial(nn.BatchNorm, use_running_average=not train)
        x = nn.relu(norm()(conv(32)(x)))
        for width, stride in ((32, 1), (64, 2), (64, 1)):
            y = nn.relu(norm()(conv(width, strides=stride)(x)))
            y = norm()(conv(width)(y))
            if y.shape != x.shape:
                x = nn.Conv(width, (1, 1), strides=stride, use_bias=False)(x)
            x = nn.relu(x + y)
        return nn.Dense(10, name="head")(x.mean((1, 2)))


def forward(variables, images) -> Any:
    """The logits of an evaluation."""
    return ResNet().apply(variables, images)


def forward_train(variables, images):
    """The logits of a training step, and the updated statistics."""
    train: Any = partial(ResNet().apply, train=True, mutable=["batch_stats"])
    logits, updated = train(variables, images)
    return logits, updated["batch_stats"]


@jax.jit
def correct(variables, images, labels):
    """Accuracy in percent."""
    return 100 * jnp.mean(jnp.argmax(forward(variables, images), -1) == labels)


def fit(variables, tx, key, data, epochs):
    """Trains all variables."""
    images, labels = data

    @jax.jit
    def step(params, stats, state, batch):
        def loss(params):
            variables = {"params": params, "batch_stats": stats}
            logits, updated = forward_train(variables, images[batch])
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits, labels[batch]
            )
            return losses.mean(), updated

        slopes, stats = jax.grad(loss, has_aux=True)(params)
        updates, state = tx.update(slopes, state, params)
        return optax.apply_updates(params, updates), stats, state

    params, stats = variables["params"], variables["batch_stats"]
    state = tx.init(params)
    for each in jax.random.split(key, epochs):
        order = jax.random.permutation(each, len(labels))
        for batch in order[: len(labels) // BATCH * BATCH].reshape(-1, BATCH):
            params, stats, state = step(params, stats, state, batch)
    return {"params": params, "batch_stats": stats}


def recalibrate(variables, batches):
    """The variables with the statistics that they have on these images."""

    def update(stats, images):
        return forward_train({**variables, "batch_stats": stats}, images)[1]

    stats = js.recalibrate_batch_stats(update, variables["batch_stats"], batches)
    return {**variables, "batch_stats": stats}


def compare(pattern, dense, key, data, held_out):
    """Prints a row for each method; returns the plan and what was trained."""
    images = data[0]
    batches = jnp.split(images[: len(images) // 100 * 100], len(images) // 100)
    plan = js.plan_sparsity(dense, pattern, fn=forward, args=(images[:1],))
    statistics = js.collect_statistics(forward, dense, batches[:8], plan=plan)
    tuned = dense
    for searcher in (js.MagnitudeSearcher(plan), js.SparseGPTSearcher(plan)):
        pruned, masks, _ = searcher.search(dense, statistics)
        renewed = recalibrate(pruned, batches)
        tx = js.wrap_optimizer(optax.adamw(1e-3), masks=masks["params"])
        tuned = fit(renewed, tx, key, data, 1)
        js.check_sparsity(tuned, plan)
        stages = [correct(v, *held_out) for v in (pruned, renewed, tuned)]
        cells = "".join(f"{accuracy:10.1f}" for accuracy in stages)
        method = type(searcher).__name__.removesuffix("Searcher")
        print(f"{f'{pattern}, {method}':24}{cells}", flush=True)
    return plan, tuned


def main():
    """Trains, prunes and prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=["digits", "mnist5k"], default="digits")
    parser.add_argument("--epochs", type=int, default=10, help="of the dense network")
    parser.add_argument("--smoke", action="store_true", help="seconds, for tests")
    args = parser.parse_args()
    data, held_out = jax.tree.map(jnp.asarray, load_images(args.data))
    epochs, patterns = (1, PATTERNS[:1]) if args.smoke else (args.epochs, PATTERNS)
    if args.smoke:
        data = jax.tree.map(lambda x: x[:400], data)

    start, keys = time.perf_counter(), jax.random.split(jax.random.key(0), 3)
    variables = ResNet().init(keys[0], data[0][:1])
    dense = fit(variables, optax.adamw(3e-3), keys[1], data, epochs)
    print(f"dense: {correct(dense, *held_out):.1f} % of {len(held_out[1])} images\n")
    print(f"{'':24}{'pruned':>10}{'renewed':>10}{'1 epoch':>10}")
    *_, (plan, tuned) = (compare(p, dense, keys[2], data, held_out) for p in patterns)
    print(f"\n{plan}\nsparsity of all weights: {js.sparsity(tuned):.1%}")
    print(f"{time.perf_counter() - start:.0f} seconds")


if __name__ == "__main__":
    main()
