"""Leaves of the model that no result needs, as batch statistics in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxsparse as js
from jaxsparse._channels import channel_groups
from tests.trace.tracing import shape


def members(group):
    return {(x.path, x.axis) for x in group.members}


def plain(p, x):
    h = x @ p["up"]
    averages = 0.9 * p["average"] + 0.1 * h.mean(0)  # returned by the whole model
    del averages
    return h @ p["down"]


def looped(p, x):
    """The averages of two layers in one loop."""

    def step(x, layer):
        up, average, down = layer
        h = x @ up
        return h @ down, 0.9 * average + 0.1 * h.mean(0)

    return jax.lax.scan(step, x, (p["up"], p["average"], p["down"]))[0]


@pytest.mark.parametrize(
    ("fn", "layers"), [(plain, ()), (jax.jit(plain), ()), (looped, (2,))]
)
def test_a_leaf_that_is_only_updated_has_the_channels_that_it_is_updated_by(fn, layers):
    params = {
        "up": shape(*layers, 3, 5),
        "average": shape(*layers, 5),
        "down": shape(*layers, 5, 3),
        "other": shape(5),
    }
    (group,) = channel_groups(fn, params, shape(4, 3)).of("average", len(layers))
    axis = len(layers)
    assert members(group) == {("up", axis + 1), ("average", axis), ("down", axis)}
    assert not group.fixed


@pytest.mark.parametrize(("leaf", "reason"), [("up", ""), ("average", "`cumsum`")])
def test_of_what_is_computed_in_vain_only_such_leaves_count(leaf, reason):
    def fn(p, x):
        h = x @ p["up"]
        assert (jnp.cumsum(h, -1) + p[leaf][0]).shape == h.shape
        return h @ p["down"]

    params = {"up": shape(3, 5), "down": shape(5, 2), "average": shape(5)}
    (group,) = channel_groups(fn, params, shape(4, 3)).of("up", 1)
    assert group.fixed == reason


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(8, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.last = nnx.Linear(16, 8, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.first(x))))


def test_batch_statistics_are_permuted_and_cut_by_a_function_that_trains():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 8)).astype(np.float32)
    model = Net(nnx.Rngs(0))
    model.norm.mean[...] = rng.normal(size=16)
    model.norm.var[...] = rng.uniform(0.1, 3, 16)
    rules = [js.Rule(".*kernel", "2:4", sizes=None), js.Rule(".*", None)]
    train = lambda model, x: model(x)
    plan = js.plan_sparsity(model, rules, fn=train, args=(x,), dense_head=False)
    evaluate = lambda model: nnx.view(model, use_running_average=True)(x)
    result = js.permute_channels(model, plan, train, (x,))
    assert result.groups
    np.testing.assert_allclose(
        evaluate(result.params), evaluate(model), rtol=1e-5, atol=1e-5
    )
    small = js.shrink_params(model, train, (x,), sparsity=0.5)
    assert small.params.norm.mean.shape == small.params.norm.var.shape == (8,)
    grown = js.grow_back(small, small.params)
    np.testing.assert_allclose(
        evaluate(small.params), evaluate(grown), rtol=1e-5, atol=1e-5
    )
