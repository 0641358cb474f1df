"""A training that saves after every step until it is killed.

    python -m tests.sharding.endless FOLDER

All numbers are small integers, so the state after any step can be computed exactly.
"""

import itertools
import sys

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec as P

import jaxsparse as js


SHAPE = (1024, 1024)
WEIGHT = np.arange(SHAPE[0] * SHAPE[1], dtype=np.float32).reshape(SHAPE, order="F") + 1

#: Weights increase along the group axis, so the last two of four are kept.
KEPT = np.broadcast_to(np.arange(SHAPE[0])[:, None] % 4 >= 2, SHAPE)


def optimizer():
    """Returns an optimizer that subtracts k at step k: momentum sums gradients of 1."""
    return js.wrap_optimizer(optax.sgd(1.0, momentum=1.0), "2:4")


def manager(folder):
    return ocp.CheckpointManager(
        folder, options=ocp.CheckpointManagerOptions(max_to_keep=2)
    )


def main():
    mesh = jax.make_mesh((len(jax.devices()),), ("data",))
    sharding = NamedSharding(mesh, P("data", None))
    tx, params = optimizer(), {"kernel": jax.device_put(WEIGHT, sharding)}
    state = tx.init(params)
    gradients = {"kernel": jax.device_put(np.ones_like(WEIGHT), sharding)}

    @jax.jit(donate_argnums=(0, 1))
    def step(params, state):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    with manager(sys.argv[1]) as checkpoints:
        for k in itertools.count(1):
            params, state = step(params, state)
            checkpoints.save(k, args=ocp.args.StandardSave((params, state)))
            print(k, flush=True)  # the save before this one is complete


if __name__ == "__main__":
    main()
