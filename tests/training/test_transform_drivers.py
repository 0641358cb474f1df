"""The contract under every way of driving an optimizer, for fifty steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax import lax

import jaxsparse as js
from tests import reference
from tests.training.masked import grads_at


STEPS = 50
INNER = {
    "adamw": lambda: optax.adamw(1e-2),
    "sgd": lambda: optax.sgd(1e-2, momentum=0.9),
}
each_inner = pytest.mark.parametrize("inner", INNER)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


def kernel(seed, dtype):
    values = np.random.default_rng(seed).normal(size=(16, 8))
    return jnp.asarray(values, dtype)


def assert_pruned(before, history):
    """Zero exactly where the oracle prunes, after every step; two in each group."""
    expected = reference.best_mask_by_rank(np.asarray(before), 2, 4, axis=0)
    np.testing.assert_array_equal(reference.n_per_group(expected, 4, 0), 2)
    assert len(history) == STEPS
    steps = np.stack([np.asarray(after).astype(np.float32) for after in history])
    np.testing.assert_array_equal(steps[:, ~expected], 0.0)
    assert np.isfinite(steps).all()
    assert (steps[-1, expected] != 0).all()


@each_dtype
@each_inner
def test_a_train_state_with_donated_arguments(inner, dtype):
    before = kernel(0, dtype)
    state = TrainState.create(
        apply_fn=None,
        params={"kernel": jnp.array(before)},
        tx=js.wrap_optimizer(INNER[inner](), "2:4"),
    )

    @jax.jit(donate_argnums=0)
    def step(state, index):
        grads = grads_at(index, state.params)
        return state.apply_gradients(grads=grads)

    history = []
    for index in range(STEPS):
        state = step(state, index)
        history.append(np.asarray(state.params["kernel"]))
    assert_pruned(before, history)


@each_dtype
@each_inner
def test_an_nnx_optimizer(inner, dtype):
    model = nnx.Linear(16, 8, rngs=nnx.Rngs(0), param_dtype=jnp.dtype(dtype))
    before = np.asarray(model.kernel[...])
    tx = js.wrap_optimizer(INNER[inner](), "2:4")
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, index):
        params = nnx.state(model, nnx.Param)
        grads = grads_at(index, params)
        optimizer.update(model, grads)

    history = []
    for index in range(STEPS):
        step(model, optimizer, index)
        history.append(np.asarray(model.kernel[...]))
    assert_pruned(before, history)


@each_dtype
@each_inner
def test_an_ensemble_under_vmap_and_scan(inner, dtype):
    tx = js.wrap_optimizer(INNER[inner](), "2:4")

    def train(params):
        def step(carry, index):
            params, state = carry
            grads = grads_at(index, params)
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params["kernel"]

        carry = params, tx.init(params)
        return lax.scan(step, carry, jnp.arange(STEPS))[1]

    kernels = jnp.stack([kernel(seed, dtype) for seed in range(3)])
    histories = jax.jit(jax.vmap(train))({"kernel": kernels})
    for before, history in zip(kernels, histories, strict=True):
        assert_pruned(before, np.asarray(history))
