"""Weights that are multiplied by a value of the data before their product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from tests.trace.tracing import plan_of, shape


X = shape(2, 16)

#: name: what is made of `w` and `x`, in which zeros of `w` stay zeros
FACTORS = {
    "scalar": lambda w, x: w * x.mean(),
    "scalar first": lambda w, x: x.mean() * w,
    "divisor": lambda w, x: w / jnp.abs(x).max(),
    "broadcast by hand": lambda w, x: w * x.mean(keepdims=True),
    "inputs": lambda w, x: w * x.mean(0)[:, None],
    "outputs": lambda w, x: w * x[:1, :8],
    "both": lambda w, x: w * x[0, :, None] * x[:1, :8],
    "transposed": lambda w, x: (w.T * x[0]).T,
    "behind a reshape": lambda w, x: (w.reshape(4, 4, 8) * x.sum()).reshape(16, 8),
    "a sum of multiples": lambda w, x: w * x.mean() + w,
    "in a function": lambda w, x: jax.jit(jax.checkpoint(jnp.multiply))(w, x.mean()),
    "in a branch": lambda w, x: jax.lax.cond(
        w[0, 0] > 0, lambda: w * x.mean(), lambda: 2 * w * x.mean()
    ),
    "rounded": lambda w, x: jnp.round(w / x.std()) * x.std(),
}


@pytest.mark.parametrize("name", FACTORS)
def test_zeros_stay_zeros_and_the_weight_is_pruned_along_its_inputs(name):
    change = FACTORS[name]
    plan = plan_of(lambda p, x: x @ change(p["w"], x), X)
    assert plan.decision == "2:4 along axis 0"
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 16)).astype("float32")
    w = np.zeros((16, 8), "float32")
    w[::2] = rng.normal(size=(8, 8))
    assert (np.asarray(change(jnp.asarray(w), jnp.asarray(x)))[1::2] == 0).all()


def test_each_example_may_have_its_own_factor():
    fn = lambda p, x: jax.vmap(lambda x: x @ (p["w"] * x.mean()))(x)
    assert plan_of(fn, X).decision == "2:4 along axis 0"


NOT_WEIGHTS = {
    "gain of a norm": lambda p, x: (x * p["w"][0]) @ p["v"],
    "one gain": lambda p, x: (x * p["w"][0, 0]) @ p["v"],
    "one divisor": lambda p, x: (x / p["w"][0, 0]) @ p["v"],
    "gain for each token": lambda p, x: (x * p["w"][:2, :]) @ p["v"],
    "positions of which some are padding": lambda p, x: (
        (x + p["w"] * (x[:, :1] > 0)) @ p["v"]
    ),
    "scaled positions, multiplied": lambda p, x: (p["w"] * x.mean()) @ p["v"],
}


@pytest.mark.parametrize("name", NOT_WEIGHTS)
def test_other_values_that_the_data_scale_are_no_weights(name):
    plan = plan_of(NOT_WEIGHTS[name], X, w=(2, 16), v=(16, 16))
    assert plan.decision.startswith("dense: not a matmul operand")


@pytest.mark.parametrize("size", [(), (1,), (1, 1), (1, 16), (2, 1)])
def test_small_parameters_scale_data_of_any_shape(size):
    for x in (X, shape(), shape(1, 1)):
        fn = lambda p, x: jnp.sum(x * p["w"]) + jnp.sum(p["w"] / x)
        assert plan_of(fn, x, w=size).reason == "not a matmul operand"


def test_a_sum_that_cannot_be_merged_stays_dense():
    fn = lambda p, x: x @ (p["w"] * x.mean() + p["v"])
    plan = plan_of(fn, X, v=(16, 8))
    assert plan.decision == "dense: not followed through a sum scaled by the inputs"


def test_the_layer_is_one_before_a_head():
    params = {"w": shape(16, 16), "head": shape(16, 24)}
    fn = lambda p, x: jnp.tanh(x @ (p["w"] * x.mean())) @ (p["head"] / x.std())
    plan = js.plan_sparsity(params, fn=fn, args=(X,))
    assert plan["w"].decision == "2:4 along axis 0"
    assert plan["head"].decision == "dense: head; pass dense_head=False"
