"""Training that continues from a state that Flax serialised is bit-equal.

The wrapper is inside what Optax puts around an optimizer, and the state goes through
bytes after every step, while masks move.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from flax.training.train_state import TrainState

import jaxsparse as js
from tests.training.masked import grads_at, params, unpacked, weights


STEPS = 8
GRADUAL = {"schedule": optax.linear_schedule(0.0, 1.0, 4, 1)}
FRACTION = {"fraction": optax.constant_schedule(0.3), "every": 2}


def wrapped(learning_rate=0.1):
    return js.wrap_optimizer(optax.adamw(learning_rate), "2:4", **GRADUAL)


def is_kernel(tree):
    return jax.tree.map(lambda x: x.ndim == 2, tree)


def labels(tree):
    return jax.tree.map(lambda x: "sparse" if x.ndim == 2 else "dense", tree)


AROUND = {
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), wrapped()),
    "last link": lambda: optax.chain(
        optax.clip(1.0), optax.adam(0.1), js.keep_params_sparse("2:4", **GRADUAL)
    ),
    "MultiSteps": lambda: optax.MultiSteps(wrapped(), 2),
    "MultiSteps of a chain": lambda: optax.MultiSteps(
        optax.chain(optax.clip(1.0), wrapped()), 2
    ).gradient_transformation(),
    "chain of MultiSteps": lambda: optax.chain(
        optax.clip(1.0), optax.MultiSteps(wrapped(), 2).gradient_transformation()
    ),
    "apply_if_finite": lambda: optax.apply_if_finite(wrapped(), 3),
    "inject_hyperparams": lambda: optax.inject_hyperparams(wrapped)(
        optax.linear_schedule(0.1, 0.01, 6)
    ),
    "masked": lambda: optax.masked(wrapped(), is_kernel),
    "partition": lambda: optax.partition(
        {"sparse": wrapped(), "dense": optax.adam(0.1)}, labels
    ),
    "regrowing in a chain": lambda: optax.chain(
        optax.clip(1.0), js.regrow_by_gradient(optax.adam(0.1), "2:4", **FRACTION)
    ),
    "regrowing at random in MultiSteps": lambda: optax.MultiSteps(
        js.regrow_at_random(optax.adam(0.1), "2:4", key=jax.random.key(0), **FRACTION),
        2,
    ),
    "straight through": lambda: optax.chain(js.add_sr_ste_decay("2:4"), optax.sgd(0.1)),
}


def narrow():
    """The parameters, one kernel of them in 16 bits."""
    tree = params()
    return {**tree, "a": {"kernel": jnp.asarray(weights(0), jnp.bfloat16)}}


def bits(tree):
    return [
        (np.asarray(x).dtype, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)
    ]


def step_of(tx, is_jitted):
    def step(tree, state, grads):
        updates, state = tx.update(grads, state, tree)
        return optax.apply_updates(tree, updates), state

    return jax.jit(step) if is_jitted else step


@pytest.mark.sweep(keep=["MultiSteps of a chain"])
@pytest.mark.parametrize("name", AROUND)
def test_training_continues_from_bytes_after_every_step(name):
    tx = AROUND[name]()
    init, step = jax.jit(tx.init), step_of(tx, is_jitted=True)
    tree = restored_tree = narrow()
    state = restored = tx.init(tree)
    for i in range(STEPS):
        grads = grads_at(i, tree)
        tree, state = step(tree, state, grads)
        restored_tree, restored = step(restored_tree, restored, grads)
        assert bits(restored_tree) == bits(tree)
        assert bits(restored) == bits(state)
        # A new process has the state of other parameters as the target.
        target = init(jax.tree.map(jnp.ones_like, narrow()))
        data = serialization.to_bytes((restored_tree, restored))
        restored_tree, restored = serialization.from_bytes((narrow(), target), data)
        assert jax.tree.structure(restored) == jax.tree.structure(state)
        assert bits(js.get_masks(restored)) == bits(js.get_masks(state))
        assert bits(restored) == bits(state)
    kept = np.concatenate([unpacked(js.get_masks(state), name) for name in "ab"])
    assert not kept.all()
    if name != "straight through":  # which keeps pruned weights
        kernels = np.concatenate([tree[name]["kernel"].astype("f4") for name in "ab"])
        assert not kernels[~kept].any()


@pytest.mark.sweep(full=["MultiSteps"])
@pytest.mark.parametrize("name", ["chain", "MultiSteps"])
def test_the_target_may_be_shapes_and_the_step_not_compiled(name):
    tx = AROUND[name]()
    step = step_of(tx, is_jitted=False)
    tree = narrow()
    state = tx.init(tree)
    for i in range(3):
        tree, state = step(tree, state, grads_at(i, tree))
    target = js.abstract_state(tx, tree) if name == "chain" else state
    data = serialization.to_bytes(state)
    restored = serialization.from_bytes(target, data)
    for i in range(3, 6):
        grads = grads_at(i, tree)
        expected, state = step(tree, state, grads)
        tree, restored = step(tree, restored, grads)
        assert bits(tree) == bits(expected)
        assert bits(restored) == bits(state)


@pytest.mark.sweep
def test_a_train_state_continues():
    tx = AROUND["MultiSteps of a chain"]()
    state = TrainState.create(apply_fn=None, params=narrow(), tx=tx)
    restored = state
    fresh = TrainState.create(
        apply_fn=None, params=jax.tree.map(jnp.ones_like, narrow()), tx=tx
    )
    step = jax.jit(lambda state, grads: state.apply_gradients(grads=grads))
    for i in range(STEPS):
        grads = grads_at(i, state.params)
        state, restored = step(state, grads), step(restored, grads)
        restored = serialization.from_bytes(fresh, serialization.to_bytes(restored))
        assert bits(restored) == bits(state)
