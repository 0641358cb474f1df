"""Values that a function closes over, known or traced: a walk reads no traced one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxsparse as js


_RULES = [js.Rule(".*", "2:4", axis=0, sizes=None)]
_KEYS = jax.random.split(jax.random.key(0), 3)
_PARAMS = {
    "a": jax.random.normal(_KEYS[0], (16, 16)),
    "b": jax.random.normal(_KEYS[1], (16, 8)),
}
_X = jax.random.normal(_KEYS[2], (20, 16))


def _model(scale):
    return lambda params, x: jnp.tanh(x @ params["a"] * scale) @ params["b"]


def _dropout(key):
    def fn(params, x):
        kept = jax.random.bernoulli(key, 0.5, x.shape)
        return jnp.where(kept, x @ params["a"], 0) @ params["b"]

    return fn


def _counter(count):
    """A running mean with a step counter, as in batch normalisation."""

    def fn(params, x):
        hidden = x @ params["a"]
        mean = jnp.where(count == 0, hidden.mean(0), 0.5 * hidden.mean(0))
        return (hidden - mean) @ params["b"]

    return fn


def _branch(index):
    def fn(params, x):
        hidden = x @ params["a"]
        return lax.cond(index > 0, jnp.tanh, jnp.sin, hidden) @ params["b"]

    return fn


_CASES = [
    (_model, jnp.float32(0.5)),
    (_model, jnp.float32(0)),
    (_model, jnp.bfloat16(0.5)),
    (_model, np.float32(0.5)),
    (_dropout, jax.random.key(1)),
    (_dropout, jax.random.PRNGKey(1)),
    (_counter, jnp.int32(0)),
    (_branch, jnp.int32(1)),
]
_each_case = pytest.mark.parametrize(("make", "value"), _CASES)


@pytest.mark.sweep(keep=["value0"])
@_each_case
def test_statistics_of_a_function_with_a_closed_over_scalar(make, value):
    # The inputs of "b" are taken from the function itself, with "b" the identity.
    statistics = js.collect_statistics(make(value), _PARAMS, [_X], plan=_RULES)
    hidden = make(value)({**_PARAMS, "b": jnp.eye(16)}, _X)
    for path, inputs in (("a", _X), ("b", hidden)):
        inputs = np.asarray(inputs, np.float64)
        moment = inputs.T @ inputs / len(inputs)
        np.testing.assert_allclose(
            statistics[path].second_moment[0], moment, rtol=1e-3, atol=1e-4
        )


@pytest.mark.sweep(keep=["value0"])
@_each_case
def test_compressed_weights_in_a_jitted_function(make, value):
    compressed = js.compress_params(_PARAMS, _RULES)
    expected = make(value)(js.decompress_params(compressed), _X)
    run = js.sparse_apply(make(value))
    np.testing.assert_allclose(jax.jit(run)(compressed, _X), expected, atol=1e-4)
    traced = jax.jit(lambda value: js.sparse_apply(make(value))(compressed, _X))
    np.testing.assert_allclose(traced(value), expected, atol=1e-4)


@_each_case
def test_a_plan_is_the_same_inside_jit(make, value):
    plans = [js.plan_sparsity(_PARAMS, _RULES, fn=make(value), args=(_X,))]

    @jax.jit
    def mask(params, value):
        plans.append(js.plan_sparsity(params, _RULES, fn=make(value), args=(_X,)))
        return js.create_masks(params, plans[-1])

    masks = mask(_PARAMS, value)
    assert {*map(str, plans)} == {str(plans[0])}
    np.testing.assert_array_equal(masks["a"], js.create_masks(_PARAMS, plans[0])["a"])


@pytest.mark.sweep
def test_a_traced_temperature_under_other_transformations():
    compressed = js.compress_params(_PARAMS, _RULES)
    dense = js.decompress_params(compressed)
    run = lambda scale: js.sparse_apply(_model(scale))(compressed, _X)
    exact = lambda scale: _model(scale)(dense, _X)
    scales = jnp.array([0.5, 0.0, 2.0])
    mapped = jax.vmap(run)(scales)
    np.testing.assert_allclose(mapped, jnp.stack([*map(exact, scales)]), atol=1e-4)
    gradient = jax.grad(lambda scale: run(scale).sum())(0.5)
    expected = jax.grad(lambda scale: exact(scale).sum())(0.5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3)
    _, scanned = lax.scan(lambda carry, scale: (carry, run(scale)), 0, scales)
    np.testing.assert_allclose(scanned, mapped, atol=1e-4)


@pytest.mark.sweep
def test_sequential_pruning_of_a_function_with_a_closed_over_scalar():
    searcher = js.SparseGPTSearcher(_RULES)
    x = jax.random.normal(jax.random.key(2), (64, 16))
    results = [
        js.prune_sequentially(
            _model(scale), _PARAMS, [x], searcher, boundaries=["a", "b"]
        )
        for scale in (0.5, jnp.float32(0.5))  # in the program, and closed over
    ]
    for leaf, same in zip(*(jax.tree.leaves(r.params) for r in results), strict=True):
        np.testing.assert_array_equal(leaf, same)


def test_a_closed_over_zero_is_still_a_zero():
    zero, params = jnp.float32(0), {"a": _PARAMS["a"]}

    def masked(params, x):
        kept = jnp.arange(16)[:, None] % 2 == 0
        return x @ jnp.where(kept, params["a"], zero)

    (use,) = js.leaf_uses(masked, params, _X)["a"]
    assert use.contracted == (0,)
    js.collect_statistics(masked, params, [_X], plan=_RULES)
