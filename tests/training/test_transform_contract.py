"""The contract of every masked transformation, alone and inside every combinator.

Fifty steps of random gradients from parameters that were never masked: from the first
update that is applied on, every masked place holds an exact zero.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax import lax

import jaxsparse as js
from tests import reference
from tests.training.masked import random_gradients
from tests.training.optimizers import OPTIMIZERS, random_params


STEPS = 50
NAN_STEPS = 3


def is_kernel(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


def labels(params):
    return jax.tree.map(lambda x: "matrix" if x.ndim > 1 else "vector", params)


# Each takes the inner optimizer and says at which step the first update is applied.
COMBINATORS = {
    "bare": (lambda inner: js.wrap_optimizer(inner, "2:4"), 0),
    "dense_gradients": (
        lambda inner: js.wrap_optimizer(inner, "2:4", mask_gradients=False),
        0,
    ),
    "last_link": (lambda inner: optax.chain(inner, js.keep_params_sparse("2:4")), 0),
    "chain": (
        lambda inner: optax.chain(
            optax.clip_by_global_norm(1.0), js.wrap_optimizer(inner, "2:4")
        ),
        0,
    ),
    "clipping_inside": (
        lambda inner: js.wrap_optimizer(
            optax.chain(optax.clip_by_global_norm(1.0), inner), "2:4"
        ),
        0,
    ),
    "partition": (
        lambda inner: optax.partition(
            {"matrix": js.wrap_optimizer(inner, "2:4"), "vector": optax.sgd(0.1)},
            labels,
        ),
        0,
    ),
    "partition_inside": (
        lambda inner: js.wrap_optimizer(
            optax.partition({"matrix": inner, "vector": optax.sgd(0.1)}, labels),
            "2:4",
        ),
        0,
    ),
    "masked": (
        lambda inner: optax.masked(js.wrap_optimizer(inner, "2:4"), is_kernel),
        0,
    ),
    "multi_steps": (
        lambda inner: optax.MultiSteps(
            js.wrap_optimizer(inner, "2:4"), every_k_schedule=4
        ).gradient_transformation(),
        3,
    ),
    "multi_steps_inside": (
        lambda inner: js.wrap_optimizer(
            optax.MultiSteps(inner, every_k_schedule=4).gradient_transformation(),
            "2:4",
        ),
        0,
    ),
    "apply_if_finite": (
        lambda inner: optax.apply_if_finite(js.wrap_optimizer(inner, "2:4"), 9),
        NAN_STEPS,
    ),
    "inject_hyperparams": (
        lambda inner: optax.inject_hyperparams(
            lambda scale: js.wrap_optimizer(
                optax.chain(inner, optax.scale(scale)), "2:4"
            )
        )(scale=0.5),
        0,
    ),
}


def train(tx, params, nan_steps=0):
    """The parameters after each step, stacked, and the state after the last."""
    gradients = random_gradients(params, STEPS)
    finite = jnp.arange(STEPS) >= nan_steps
    gradients = jax.tree.map(
        lambda g: jnp.where(finite.reshape(-1, *[1] * (g.ndim - 1)), g, jnp.nan),
        gradients,
    )

    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    @jax.jit
    def run(params, gradients):
        carry = params, tx.init(params)
        (_, state), history = lax.scan(step, carry, gradients)
        return history, state

    return run(params, gradients)


def expected_masks(params):
    """The oracle's 2:4 masks of the initial kernels."""
    return {
        name: reference.best_mask_by_rank(np.asarray(layer["kernel"]), 2, 4, axis=0)
        for name, layer in params.items()
    }


def assert_sparse_from(first, history, state, params):
    masks = js.get_masks(state)
    for name, expected in expected_masks(params).items():
        kept = reference.unpack(
            np.asarray(masks[name]["kernel"]), expected.shape, axis=0
        )
        np.testing.assert_array_equal(kept, expected)
        np.testing.assert_array_equal(reference.n_per_group(kept, 4, axis=0), 2)
        kernels = np.asarray(history[name]["kernel"]).astype(np.float32)
        assert np.isfinite(kernels).all()
        pruned = np.broadcast_to(~expected, kernels.shape)
        np.testing.assert_array_equal(kernels[first:][pruned[first:]], 0.0)
        # It really trains: what is kept moves, and nothing was pruned beforehand.
        assert (kernels[-1][expected] != kernels[first][expected]).any()
        before = np.asarray(params[name]["kernel"]).astype(np.float32)
        for kernel in kernels[:first]:
            np.testing.assert_array_equal(kernel, before)


@pytest.mark.sweep(keep=["adamw-float32"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lands_on_exact_zeros(name, dtype):
    params = random_params(dtype)
    history, state = train(js.wrap_optimizer(OPTIMIZERS[name](), "2:4"), params)
    assert_sparse_from(0, history, state, params)


@pytest.mark.sweep(
    keep=[
        "[chain-adamw-bfloat16]",
        "[partition-adamw-bfloat16]",
        "[multi_steps-adamw-bfloat16]",
    ]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("inner", ["adamw", "sgd"])
@pytest.mark.parametrize("name", COMBINATORS)
def test_every_combinator_keeps_the_guarantee(name, inner, dtype):
    combine, first = COMBINATORS[name]
    params = random_params(dtype)
    nan_steps = NAN_STEPS if name == "apply_if_finite" else 0
    history, state = train(combine(OPTIMIZERS[inner]()), params, nan_steps)
    assert_sparse_from(first, history, state, params)


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_evaluation_params_of_schedule_free_are_sparse_too(dtype):
    params = random_params(dtype)
    tx = js.wrap_optimizer(OPTIMIZERS["schedule_free"](), "2:4")
    history, state = train(tx, params)
    last = jax.tree.map(lambda x: x[-1], history)
    averaged = optax.contrib.schedule_free_eval_params(state.inner_state, last)
    for name, expected in expected_masks(params).items():
        kernel = np.asarray(averaged[name]["kernel"]).astype(np.float32)
        np.testing.assert_array_equal(kernel[~expected], 0.0)
        assert (kernel[expected] != 0).all()
