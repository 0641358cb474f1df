"""What masks cost an optimizer: its step with them, in multiples of the plain step.

    python -m benchmarks.optimizer_step [--rounds 9]

The large network has nine leaves of four million float32 weights (on a GPU six of 134
million), the small one sixty leaves and a million weights in all. "packed" is
`wrap_optimizer`; "bool" is a plain statement of the same step with bool masks in the
state, a byte a weight. Parameters and state are donated, as in a training loop.
"memory" is what the compiled step needs for temporaries, in multiples of the params.
"""

import argparse
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax

import jaxsparse as js
from benchmarks.timing import machine, medians, print_rows


OPTIMIZERS = {
    "adamw": lambda: optax.adamw(1e-4),
    "sgd": lambda: optax.sgd(1e-4, momentum=0.9),
    "lion": lambda: optax.lion(1e-5),
    "adafactor": lambda: optax.adafactor(1e-4),
}
RULES = [js.Rule(".*kernel", "2:4", axis=0, sizes=None), js.Rule(".*", None)]


def with_bool_masks(inner, masks):
    """The masked step with masks of a byte a weight."""

    def init(params):
        return masks, inner.init(js.mask_params(params, masks))

    def update(updates, state, params=None):
        kept, inner_state = state
        masked = js.mask_params(params, kept)
        updates = js.mask_params(updates, kept)
        updates, inner_state = inner.update(updates, inner_state, masked)
        land = lambda kept, step, weight: jnp.where(kept, step, -weight)
        updates = jax.tree.map(
            lambda step, mask, weight: (
                step if mask is None else land(mask, step, weight)
            ),
            updates,
            kept,
            params,
        )
        return updates, (kept, inner_state)

    return optax.GradientTransformation(init, update)


def network(size: str) -> dict[str, jax.Array]:
    """Random weights: large leaves, or many small ones with biases between them."""
    gpu = jax.default_backend() != "cpu"
    if size == "large":
        shape, count = ((16384, 8192), 6) if gpu else ((2048, 2048), 9)
        shapes = {f"{i}/kernel": shape for i in range(count)}
    else:
        shapes = {f"{i}/kernel": (128, 256) for i in range(30)}
        shapes |= {f"{i}/bias": (256,) for i in range(30)}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {
        name: jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def stepper(tx, params, gradients):
    """A function that makes one step each time, and the bytes of its temporaries."""

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    now = [jax.tree.map(jnp.copy, params), jax.jit(tx.init)(params)]
    jitted = jax.jit(step, donate_argnums=(0, 1))
    memory = jitted.lower(*now, gradients).compile().memory_analysis()

    def once():
        now[:] = jitted(*now, gradients)
        return now

    assert memory is not None
    return once, memory.temp_size_in_bytes


def rows(rounds: int, sizes=("large", "small"), names=tuple(OPTIMIZERS)) -> Iterator:
    """One row for each network and optimizer."""
    for size in sizes:
        params = network(size)
        gradients = jax.tree.map(lambda w: 0.01 * w, params)
        nbytes = sum(w.nbytes for w in params.values())
        for name in names:
            inner = OPTIMIZERS[name]()
            masks = js.create_masks(params, RULES)
            variants = {
                "plain": inner,
                "bool": with_bool_masks(inner, masks),
                "packed": js.wrap_optimizer(inner, RULES),
            }
            steps, bytes_of = {}, {}
            for kind, tx in variants.items():
                steps[kind], bytes_of[kind] = stepper(tx, params, gradients)
            times, _ = medians(steps, rounds if size == "large" else 10 * rounds)
            yield {
                "network": size,
                "optimizer": name,
                "plain ms": times["plain"] * 1e3,
                "bool": times["bool"] / times["plain"],
                "packed": times["packed"] / times["plain"],
                **{
                    f"{kind} memory": round(n / nbytes, 3)
                    for kind, n in bytes_of.items()
                },
            }


def main():
    """Prints one row for each network and optimizer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    print(machine())
    print_rows(rows(args.rounds))


if __name__ == "__main__":
    main()
