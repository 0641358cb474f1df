"""How the smaller parameters are run in each framework."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxsparse as js


X = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)


class LinenMLP(nn.Module):
    features: int = 32

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Dense(self.features)(x)))
        return nn.Dense(4)(x)


class NNXMLP(nnx.Module):
    def __init__(self, features, rngs):
        self.first = nnx.Linear(8, features, rngs=rngs)
        self.norm = nnx.BatchNorm(features, use_running_average=True, rngs=rngs)
        self.last = nnx.Linear(features, 4, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.first(x))))


def assert_same_outputs(outputs, fn, result):
    """The dense model of the old sizes gives the same, grown back."""
    expected = fn(js.grow_back(result, result.params), X)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.sweep
def test_linen_takes_its_features_from_the_kernel():
    variables = LinenMLP().init(jax.random.key(0), X)
    fn = lambda variables, x: LinenMLP().apply(variables, x)
    result = js.shrink_params(variables, fn, (X,), sparsity=0.5)
    features = result.params["params"]["Dense_0"]["kernel"].shape[1]
    assert features == 16
    assert result.params["batch_stats"]["BatchNorm_0"]["mean"].shape == (16,)
    outputs = LinenMLP(features).apply(result.params, X)
    assert_same_outputs(outputs, fn, result)


@pytest.mark.sweep
def test_nnx_is_updated_in_place_or_built_anew():
    model = NNXMLP(32, nnx.Rngs(0))
    graph, state = nnx.split(model)
    fn = lambda state, x: nnx.merge(graph, state)(x)
    result = js.shrink_params(state, fn, (X,), sparsity=0.5)
    built = NNXMLP(result.params["first"]["kernel"].shape[1], nnx.Rngs(1))
    for smaller in (model, built):
        nnx.update(smaller, result.params)
        assert smaller.norm.mean.shape == (16,)
        assert_same_outputs(smaller(X), fn, result)


@pytest.mark.sweep
def test_equinox_runs_as_it_is():
    model = eqx.nn.MLP(8, 4, 32, 2, key=jax.random.key(0))
    fn = lambda model, x: jax.vmap(model)(x)
    result = js.shrink_params(model, fn, (X,), sparsity=0.5)
    smaller = result.params
    shapes = [layer.weight.shape for layer in smaller.layers]
    assert shapes == [(16, 8), (16, 16), (4, 16)]
    assert smaller.activation is model.activation
    assert_same_outputs(jax.vmap(smaller)(jnp.asarray(X)), fn, result)
