"""What the tests of masked optimizers share: parameters, oracle and steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests import reference


def weights(seed=0, shape=(16, 8)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


PARAMS = {
    "a": {"kernel": weights(0)},
    "b": {"kernel": weights(1), "bias": weights(2, 8)},
}


def params():
    return jax.tree.map(jnp.asarray, PARAMS)


def oracle(weight, n=2, m=4):
    return reference.best_mask_by_rank(np.asarray(weight), n, m, axis=0)


def unpacked(masks, name, shape=(16, 8)):
    return reference.unpack(np.asarray(masks[name]["kernel"]), shape, axis=0)


# Drawn by NumPy: a draw by JAX would take longer to compile than the step itself.
def random_gradients(like, steps=200):
    """Those of each step, stacked."""
    rng = np.random.default_rng(7)
    draw = lambda x: jnp.asarray(rng.normal(size=(steps, *x.shape)), x.dtype)
    return jax.tree.map(draw, like)


def grads_at(index, like):
    return jax.tree.map(lambda stacked: stacked[index], random_gradients(like))


def make_step(tx):
    def step(params, state, index):
        updates, state = tx.update(grads_at(index, params), state, params)
        return optax.apply_updates(params, updates), state

    return step


def given_masks():
    mask = np.zeros((16, 8), bool)
    mask[::4] = True
    return {"a": {"kernel": mask}, "b": {"kernel": None, "bias": None}}
