"""A small network with data and tensor parallelism, for tests of long runs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec as P

import jaxsparse as js


SHAPES = {"up": (32, 64), "down": (64, 16)}
SPECS = {"up": P("data", "model"), "down": P("model", "data")}
PLAN = [js.Rule(".*", "2:4", axis=0, sizes=None)]
ROWS = 16


def drawn(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def put(tree, mesh, specs=SPECS):
    """Puts a tree on a mesh, if there is one."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)
    device_put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    return jax.tree.map(device_put, tree, specs)


def start(mesh=None):
    params = {name: drawn(i, shape) for i, (name, shape) in enumerate(SHAPES.items())}
    return put(params, mesh)


def batch(step, mesh=None):
    return put(drawn(100 + step, (ROWS, 32)), mesh, P("data"))


def optimizer():
    """Prunes from dense to 2:4 via 3:4 in the first ten steps."""
    schedule = js.cubic_schedule(2, 10)
    return js.wrap_optimizer(optax.adamw(1e-2), PLAN, schedule=schedule, every=2)


def loss(params, x):
    y = jnp.tanh(x @ params["up"]) @ params["down"]
    return jnp.mean((y - x[:, :16]) ** 2)


@jax.jit(donate_argnums=(0, 1))
def step(params, state, x):
    updates, state = optimizer().update(jax.grad(loss)(params, x), state, params)
    return optax.apply_updates(params, updates), state


def train(params, state, steps, mesh=None):
    for i in steps:
        params, state = step(params, state, batch(i, mesh))
    return params, state
