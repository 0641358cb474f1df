"""Modules of NNX that change their own variables: what is traced must not lose that.

The expected values are those of the plain module.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxsparse as js


class _Mlp(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(32, 64, rngs=rngs)
        self.norm = nnx.BatchNorm(64, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.down = nnx.Linear(64, 32, rngs=rngs)

    def __call__(self, x):
        return self.down(self.dropout(nnx.relu(self.norm(self.up(x)))))


def _call(module, x):
    return module(x)


def _loss(module, x):
    return jnp.mean(module(x) ** 2)


def _states(module):
    """Returns what is no weight: statistics, caches and counts of random numbers."""
    state = nnx.state(module, nnx.Not(nnx.Param))
    leaves = jax.tree.leaves(state)
    return [
        np.asarray(x)
        for x in leaves
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    ]


def _pruned(module, *args):
    plan = js.plan_sparsity(
        nnx.clone(module), "2:4 transposable", fn=_call, args=args, dense_head=False
    )
    return plan, js.mask_params(module, js.create_masks(module, plan))


def _assert_same(states, expected):
    assert len(states) == len(expected) > 0
    for state, target in zip(states, expected, strict=True):
        np.testing.assert_allclose(state, target, rtol=1e-4, atol=1e-6)


@pytest.mark.sweep(keep=["lambda"])
@pytest.mark.parametrize("implementation", [None, "xla"])
@pytest.mark.parametrize(
    "transform", [nnx.value_and_grad, lambda f: nnx.jit(nnx.grad(f))]
)
def test_accelerate_keeps_statistics_and_counts(implementation, transform):
    x = jax.random.normal(jax.random.key(0), (8, 32))
    plan, module = _pruned(_Mlp(nnx.Rngs(0)), x)
    expected, before = nnx.clone(module), _states(module)
    step = transform(js.accelerate(_loss, plan, implementation=implementation))
    for _ in range(2):
        step(module, x)
        nnx.grad(_loss)(expected, x)
    _assert_same(_states(module), _states(expected))
    assert any((a != b).any() for a, b in zip(before, _states(module), strict=True))


@pytest.mark.sweep(keep=["jit"])
@pytest.mark.parametrize("jit", [lambda fn: fn, nnx.jit])
def test_sparse_apply_keeps_the_cache_of_attention(jit):
    tokens = jax.random.normal(jax.random.key(0), (3, 1, 1, 32))
    module = nnx.MultiHeadAttention(4, 32, decode=True, rngs=nnx.Rngs(0))
    module.init_cache((1, 8, 32))
    plan, expected = _pruned(module, tokens[0])
    small = js.compress_params(expected, plan)
    run = jit(js.sparse_apply(_call, plan))
    for token in tokens:
        output, target = run(small, token), expected(token)
        np.testing.assert_allclose(output, target, rtol=1e-5, atol=1e-6)
    assert small.cache_index[...] == 3
    js.check_sparsity(nnx.state(small, nnx.Param), plan)


class _Sowing(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(32, 64, rngs=rngs)
        self.down = nnx.Linear(64, 32, rngs=rngs)

    def __call__(self, x):
        hidden = nnx.relu(self.up(x))
        self.sow(nnx.Intermediate, "hidden", hidden)
        return self.down(hidden)


@pytest.mark.sweep(keep=["jit"])
@pytest.mark.parametrize("jit", [lambda fn: fn, nnx.jit])
def test_what_is_sowed_is_captured(jit):
    x = jax.random.normal(jax.random.key(0), (4, 32))
    plan = [js.Rule(".*kernel", "2:4", axis=0), js.Rule(".*", None)]
    module = _Sowing(nnx.Rngs(0))
    module = js.mask_params(module, js.create_masks(module, plan))
    small = js.compress_params(module, plan)
    hidden = np.maximum(x @ module.up.kernel[...] + module.up.bias[...], 0)
    for fn, model in [
        (js.sparse_apply(_call, plan), small),
        (js.accelerate(_call, plan), module),
        (js.accelerate(_call, plan, implementation="xla"), module),
    ]:
        _, captured = jit(nnx.capture(fn, nnx.Intermediate))(model, x)
        (value,) = captured["hidden"].get_raw_value()
        np.testing.assert_allclose(value, hidden, rtol=1e-5, atol=1e-6)


def test_variables_of_other_arguments_are_changed_too():
    def fn(params, x, *, changes):
        changes[...] += 1
        return changes[...] * (x @ params["w"])

    params = {"w": jnp.ones((32, 16))}
    small = js.compress_params(params, [js.Rule("w", "2:4", axis=0)])
    count = nnx.Variable(jnp.zeros(()))
    run = js.sparse_apply(fn)
    for i in (1, 2):
        y = run(small, jnp.ones((1, 32)), changes=count)
        np.testing.assert_array_equal(y, 16.0 * i)
        assert count[...] == i


def test_a_variable_that_changes_is_passed_once():
    def fn(params, first, second, x):
        first[...] += 1
        return second[...] * (x @ params["w"])

    params = {"w": jnp.ones((32, 16))}
    small = js.compress_params(params, [js.Rule("w", "2:4", axis=0)])
    count, other = nnx.Variable(jnp.zeros(2)), nnx.Variable(jnp.ones(()))
    run = js.sparse_apply(fn)
    run(small, count, other, jnp.ones((1, 32)))
    words = (
        r"Variable of shape \(\) .* more than once, as \[1\] and \[2\]: pass it once"
    )
    with pytest.raises(ValueError, match=words):
        run(small, other, other, jnp.ones((1, 32)))
    np.testing.assert_array_equal(count[...], 1)
    assert other[...] == 1
