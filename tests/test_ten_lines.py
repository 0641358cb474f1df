"""The ten lines that a user writes, on three models of three libraries."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn, nnx
from flax.training.train_state import TrainState

import jaxsparse as js
from tests import reference


RULES = [
    js.Rule(r".*lm_head.*", None),
    js.Rule(r".*mlp.*", "1:4"),
    js.Rule(r".*", "2:4"),
]
X = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(32, name="mlp")(x))
        return nn.Dense(16, name="lm_head")(nn.Dense(32, name="last")(x))


class NNXModel(nnx.Module):
    def __init__(self, rngs):
        self.mlp = nnx.Linear(16, 32, rngs=rngs)
        self.last = nnx.Linear(32, 32, rngs=rngs)
        self.lm_head = nnx.Linear(32, 16, rngs=rngs)

    def __call__(self, x):
        return self.lm_head(self.last(nnx.relu(self.mlp(x))))


def assert_pruned(before, after, n, axis=0):
    expected = reference.best_mask_by_rank(np.asarray(before), n, 4, axis)
    np.testing.assert_array_equal(np.asarray(after) != 0, expected)


@pytest.mark.sweep
def test_linen():
    model = LinenModel()
    dense = params = jax.jit(model.init)(jax.random.key(0), X)["params"]

    plan = js.plan_sparsity(params, RULES)
    assert "1:4 along axis 0" in str(plan)
    masks = js.create_masks(params, plan)
    params = js.mask_params(params, masks)
    tx = js.wrap_optimizer(optax.adamw(1e-3), plan)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    loss = lambda p: jnp.mean(jnp.square(model.apply({"params": p}, X)))
    step = jax.jit(lambda s: s.apply_gradients(grads=jax.grad(loss)(s.params)))
    for _ in range(3):
        state = step(state)
    masks = js.get_masks(state.opt_state)
    js.check_sparsity(state.params, plan)

    assert_pruned(dense["mlp"]["kernel"], state.params["mlp"]["kernel"], n=1)
    assert_pruned(dense["last"]["kernel"], state.params["last"]["kernel"], n=2)
    assert masks["lm_head"]["kernel"] is None
    flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.params)])
    np.testing.assert_allclose(js.sparsity(state.params), np.mean(flat == 0), rtol=1e-6)


def test_nnx():
    model = NNXModel(nnx.Rngs(0))
    mlp, last = model.mlp.kernel[...], model.last.kernel[...]
    params = nnx.state(model, nnx.Param)

    plan = js.plan_sparsity(params, RULES)
    masks = js.create_masks(params, plan)
    nnx.update(model, js.mask_params(params, masks))
    tx = js.wrap_optimizer(optax.adamw(1e-3), plan)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(lambda m: jnp.mean(m(X) ** 2))(model)
        optimizer.update(model, grads)

    for _ in range(3):
        step(model, optimizer)
    masks = js.get_masks(optimizer.opt_state)
    js.check_sparsity(nnx.state(model, nnx.Param), plan)

    assert_pruned(mlp, model.mlp.kernel[...], n=1)
    assert_pruned(last, model.last.kernel[...], n=2)
    assert np.asarray(model.lm_head.kernel[...]).all()
    assert jax.tree.leaves(masks["lm_head"]) == []


def test_equinox():
    model = eqx.nn.MLP(16, 16, 32, 2, key=jax.random.key(0))
    dense = model

    plan = js.plan_sparsity(model, [js.Rule(r".*weight", "2:4", axis=-1)])
    masks = js.create_masks(model, plan)
    model = js.mask_params(model, masks)
    tx = js.wrap_optimizer(optax.adamw(1e-3), masks=masks)
    state = tx.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_jit
    def step(model, state):
        grads = eqx.filter_grad(lambda m: jnp.mean(jax.vmap(m)(X) ** 2))(model)
        params = eqx.filter(model, eqx.is_array)
        updates, state = tx.update(grads, state, params)
        return eqx.apply_updates(model, updates), state

    for _ in range(3):
        model, state = step(model, state)
    masks = js.get_masks(state)
    js.check_sparsity(model, plan)

    for before, after in zip(dense.layers, model.layers, strict=True):
        assert_pruned(before.weight, after.weight, n=2, axis=1)
