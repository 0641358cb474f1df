"""What the tests of masked optimizers share: parameters, oracle and steps."""

from functools import partial

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


def grads_at(index, like):
    key = jax.random.fold_in(jax.random.key(7), index)
    return optax.tree.random_like(key, like, jax.random.normal)


# Apart from the step, so that random numbers are compiled once for all optimizers.
@partial(jax.jit, static_argnums=1)
def random_gradients(like, steps):
    """Those of each step, stacked."""

    def draw(index):
        key = jax.random.fold_in(jax.random.key(1), index)
        return optax.tree.random_like(key, like, jax.random.normal)

    return jax.lax.map(draw, jnp.arange(steps))


def make_step(tx):
    def step(params, state, index):
        updates, state = tx.update(grads_at(index, params), state, params)
        return optax.apply_updates(params, updates), state

    return step


def given_masks():
    mask = np.zeros((16, 8), bool)
    mask[::4] = True
    return {"a": {"kernel": mask}, "b": {"kernel": None, "bias": None}}
