"""The walker runs programs as they stand, and with parts replaced."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec as P

from jaxsparse._trace.evaluate import evaluate
from jaxsparse._trace.jaxpr import BoundJaxpr


W = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
X = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)


def scan(x, w):
    step = lambda c, row: (jnp.tanh(c @ w) + row, jnp.sum(c))
    return lax.scan(step, x, jnp.ones((5, 3, 4)), reverse=True)


def while_loop(x, w):
    return lax.while_loop(lambda c: c[1] < 3, lambda c: (c[0] @ w, c[1] + 1), (x, 0))


def cond(x, w):
    return lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x)


def switch(x, w):
    return lax.switch(2, [lambda: x, lambda: -x, lambda: x @ w])


@jax.custom_vjp
def custom(x, w):
    return x @ w


custom.defvjp(lambda x, w: (x @ w, None), lambda _, g: (g, g))


def sharded(x, w):
    mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))
    product = functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(P("i"), P()), out_specs=P("i")
    )
    return product(lambda x, w: x @ w)(x, w)


PROGRAMS = [
    lambda x, w: jnp.sum(x @ w) + 1,
    jax.jit(lambda x, w: x @ w),
    jax.checkpoint(lambda x, w: jnp.tanh(x @ w)),
    jax.vmap(lambda x, w: x @ w, in_axes=(0, None)),
    lambda x, w: jax.grad(lambda x: jnp.sum(jax.nn.relu(x @ w)))(x),
    scan,
    while_loop,
    cond,
    switch,
    custom,
    sharded,
]


def run(fn, rule):
    closed = jax.make_jaxpr(fn)(X, W)
    apply = lambda site, inputs, state: (rule(site.eqn, inputs), state)
    return evaluate(BoundJaxpr(closed.jaxpr, closed.consts), [X, W], apply)[0]


@pytest.mark.parametrize("fn", PROGRAMS)
def test_programs_run_as_they_stand(fn):
    result = run(fn, lambda *_: None)
    for got, expected in zip(result, jax.tree.leaves(fn(X, W)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fn", PROGRAMS)
def test_products_are_replaced_wherever_they_stand(fn):
    """Every product doubled is the same as the program with a weight of twice 2 W."""

    def doubled(eqn, inputs):
        if eqn.primitive.name != "dot_general":
            return None
        return [2 * eqn.primitive.bind(*inputs, **eqn.params)]

    result = jax.jit(lambda: run(fn, doubled))()
    expected = jax.tree.leaves(fn(X, 2 * W))
    for got, reference in zip(result, expected, strict=True):
        np.testing.assert_allclose(got, reference, rtol=1e-5, atol=1e-5)
