"""Functions that print, call back to Python or check values while they run.

No result depends on that, so plans, results and gradients are those of the function
without it, and what is printed is printed as before.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify, io_callback

import jaxsparse as js


_SEEN = []


def _see(x):
    _SEEN.append(np.asarray(x))


def _callback(x):
    jax.debug.callback(_see, x)


def _in_branch(x):
    jax.lax.cond(x.sum() > -jnp.inf, lambda: _callback(x), lambda: None)


def _in_loop(x):
    jax.lax.scan(lambda carry, row: (carry, _callback(row)), 0, x)


_EFFECTS = {
    "callback": _callback,
    "ordered": lambda x: io_callback(_see, None, x, ordered=True),
    "check": lambda x: checkify.debug_check(jnp.all(jnp.isfinite(x)), "not finite"),
    "in a branch": _in_branch,
    "in a loop": _in_loop,
}


def _forward(params, x, effect=lambda _: None):
    h = x @ params["up"]
    effect(h)
    squares = jnp.square(jax.nn.relu(h))
    effect(squares)
    return squares @ params["down"]


@pytest.fixture(params=_EFFECTS)
def fn(request):
    effect = _EFFECTS[request.param]
    return lambda params, x: _forward(params, x, effect)


@pytest.fixture
def params():
    keys = jax.random.split(jax.random.key(0), 2)
    shapes = {"up": (16, 32), "down": (32, 16)}
    return {
        name: jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


X = jax.random.normal(jax.random.key(1), (16, 16))
RULES = "2:4 transposable"


def test_plans_and_channels_are_those_without(fn, params):
    plan = js.plan_sparsity(params, RULES, fn=fn, args=(X,), dense_head=False)
    expected = js.plan_sparsity(params, RULES, fn=_forward, args=(X,), dense_head=False)
    assert plan == expected
    assert len(plan.sparse) == 2
    groups = js.channel_groups(fn, params, X)
    assert str(groups) == str(js.channel_groups(_forward, params, X))
    statistics = js.collect_statistics(fn, params, [(X,)], plan=plan)
    np.testing.assert_allclose(
        statistics["up"].second_moment[0], X.T @ X / len(X), rtol=1e-4, atol=1e-5
    )


def test_results_are_those_without(fn, params):
    rules = [js.Rule(".*", RULES, axis=0)]
    params = js.mask_params(params, js.create_masks(params, rules))
    run = js.sparse_apply(fn, rules)
    y, expected = run(js.compress_params(params, rules), X), _forward(params, X)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def _see_weight(params, x):
    _callback(params["up"])
    return _forward(params, x)


@pytest.mark.parametrize(
    "fn", [lambda params, x: _forward(params, x, _callback), _see_weight]
)
def test_gradients_are_those_without(fn, params):
    rules = [js.Rule(".*", RULES, axis=0)]
    params = js.mask_params(params, js.create_masks(params, rules))
    loss = lambda fn: lambda params: jnp.mean(fn(params, X) ** 2)
    fast = js.accelerate(loss(fn), rules, implementation="xla")
    gradients, expected = jax.grad(fast)(params), jax.grad(loss(_forward))(params)
    for name in params:
        scale = float(jnp.abs(expected[name]).max())
        np.testing.assert_allclose(gradients[name], expected[name], atol=1e-4 * scale)


def test_each_is_seen_once(params):
    _SEEN.clear()
    fn = lambda params, x: _forward(params, x, _callback)
    small = js.compress_params(params, [js.Rule(".*", "2:4", axis=0)])
    js.sparse_apply(fn)(small, X)
    jax.effects_barrier()
    h = X @ js.decompress(small["up"])
    assert len(_SEEN) == 2
    np.testing.assert_allclose(_SEEN[0], h, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(_SEEN[1], np.maximum(h, 0) ** 2, rtol=1e-4, atol=1e-3)


def test_squared_relus_are_found(fn, params):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    x = X.astype(jnp.bfloat16)
    shares = js.dropped_activations(fn, params, x)
    assert shares == js.dropped_activations(_forward, params, x)
    assert set(shares) == {"down"}
    fast = jax.jit(js.accelerate(fn, None, activations=True))
    plain = jax.jit(js.accelerate(_forward, None, activations=True))
    np.testing.assert_array_equal(fast(params, x), plain(params, x))
