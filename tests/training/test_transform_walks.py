"""Exact sparsity while masks move, for every optimizer of the contract.

Sixty steps in one scan: a gradual walk from dense to 2:8, and RigL.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

import jaxsparse as js
from tests import reference
from tests.training.masked import random_gradients
from tests.training.optimizers import OPTIMIZERS, random_params


STEPS = 60


def histories(tx, params):
    """The parameters and the masks after each step."""

    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, js.get_masks(state))

    run = jax.jit(lambda p, gradients: lax.scan(step, (p, tx.init(p)), gradients)[1])
    return run(params, random_gradients(params, STEPS))


def walk(tx):
    """For both kernels: values and masks after each step."""
    params = random_params("float32")
    params["Dense_1"] = random_params("bfloat16")["Dense_1"]
    tree, masks = histories(tx, params)
    for name, layer in params.items():
        kernels = np.asarray(tree[name]["kernel"]).astype(np.float32)
        packed = np.asarray(masks[name]["kernel"])
        shape = layer["kernel"].shape
        kept = np.stack([reference.unpack(p, shape, axis=0) for p in packed])
        assert np.isfinite(kernels).all()
        np.testing.assert_array_equal(kernels[~kept], 0.0)
        assert (kernels[-1][kept[-1]] != 0).all()
        yield kernels, kept


@pytest.mark.sweep
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_gradual_walk_is_exactly_sparse_at_every_step(name):
    schedule = optax.linear_schedule(0.0, 1.0, 24, 6)
    tx = js.wrap_optimizer(OPTIMIZERS[name](), "2:8", schedule=schedule)
    for _, kept in walk(tx):
        for index, mask in enumerate(kept):
            closed = round(min(max(index - 6, 0) / 24, 1.0) * 6)
            np.testing.assert_array_equal(reference.n_per_group(mask, 8, 0), 8 - closed)
        assert not (kept[1:] & ~kept[:-1]).any()


@pytest.mark.sweep
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rigl_is_exactly_sparse_at_every_step(name):
    fraction = optax.cosine_decay_schedule(0.4, 40)
    tx = js.regrow_by_gradient(OPTIMIZERS[name](), "2:4", fraction=fraction, every=7)
    for _, kept in walk(tx):
        for mask in kept:
            np.testing.assert_array_equal(reference.n_per_group(mask, 4, 0), 2)
        changed = [i for i in range(1, STEPS) if (kept[i] != kept[i - 1]).any()]
        assert changed
        assert set(changed) <= {7, 14, 21, 28, 35}


COMBINATORS = {
    "partition": lambda tx: optax.partition(
        {"matrix": tx, "vector": optax.sgd(0.1)},
        lambda params: jax.tree.map(
            lambda x: "matrix" if x.ndim > 1 else "vector", params
        ),
    ),
    "masked": lambda tx: optax.masked(
        tx, lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
    ),
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
}


@pytest.mark.sweep
@pytest.mark.parametrize("name", COMBINATORS)
def test_rigl_inside_combinators(name):
    tx = js.regrow_by_gradient(
        optax.adamw(1e-2), "2:4", fraction=lambda _: 0.4, every=7
    )
    for _, kept in walk(COMBINATORS[name](tx)):
        np.testing.assert_array_equal(reference.n_per_group(kept[-1], 4, 0), 2)
        changed = [i for i in range(1, STEPS) if (kept[i] != kept[i - 1]).any()]
        assert changed == [7, 14, 21, 28, 35, 42, 49, 56]


@pytest.mark.sweep
def test_an_nnx_optimizer_regrows():
    model = nnx.Linear(16, 8, rngs=nnx.Rngs(0))
    tx = js.regrow_by_gradient(optax.adam(0.1), "2:4", fraction=lambda _: 0.5, every=3)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        optimizer.update(model, nnx.grad(lambda m: jnp.sum((m(x) - 1) ** 2))(model))

    before, changed = None, []
    for index in range(12):
        step(model, optimizer, jax.random.normal(jax.random.key(index), (4, 16)))
        mask = np.asarray(model.kernel[...]) != 0
        np.testing.assert_array_equal(reference.n_per_group(mask, 4, 0), 2)
        if before is not None and (mask != before).any():
            changed.append(index)
        before = mask
    assert changed == [3, 6, 9]
    assert float(optimizer.opt_state.flip_rate[...]) > 0
