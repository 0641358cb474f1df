"""Group axes of weights inside loops, branches, derivatives and shards."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec as P

from tests.trace.tracing import X, plan_of


@jax.custom_vjp
def custom_vjp(x, w):
    return x @ w


custom_vjp.defvjp(lambda x, w: (x @ w, None), lambda _, g: (g, g))


@jax.custom_jvp
def custom_jvp(x, w):
    return x @ w


custom_jvp.defjvp(lambda p, t: (p[0] @ p[1], t[0] @ p[1]))


def scan_over_layers(x, w):
    return lax.scan(lambda x, layer: (jnp.tanh(x @ layer), None), x, w)[0]


def scan_with_constants(x, w):
    return lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=3)[0]


def scan_that_carries(x, w):
    return lax.scan(lambda c, _: ((c[0] @ c[1], c[1]), None), (x, w), None, length=3)[
        0
    ][0]


def while_loop(x, w):
    return lax.while_loop(lambda x: jnp.sum(x) < 3, lambda x: x @ w, x)


def while_that_carries(x, w):
    return lax.while_loop(
        lambda c: jnp.sum(c[0]) < 3, lambda c: (c[0] @ c[1], c[1]), (x, w)
    )[0]


def branches(x, w):
    return lax.cond(jnp.sum(x) > 0, lambda: x @ w, lambda: x @ (2 * w))


def one_of_two_weights(x, w):
    chosen = lax.cond(True, lambda w: w, lambda w: -w, w)
    return x @ chosen


@pytest.mark.parametrize(
    ("fn", "w", "axis"),
    [
        (custom_vjp, (16, 16), 0),
        (custom_jvp, (16, 16), 0),
        (jax.jit(lambda x, w: x @ w), (16, 16), 0),
        (jax.checkpoint(lambda x, w: x @ w.T), (16, 16), 1),
        (jax.vmap(lambda x, w: x @ w, in_axes=(0, None)), (16, 16), 0),
        (jax.vmap(lambda x, w: x @ w, in_axes=(None, 0)), (3, 16, 8), 1),
        (jax.vmap(lambda x, w: x @ w, in_axes=(None, 2)), (16, 8, 3), 0),
        (scan_over_layers, (3, 16, 16), 1),
        (scan_with_constants, (16, 16), 0),
        (scan_that_carries, (16, 16), 0),
        (while_loop, (16, 16), 0),
        (while_that_carries, (16, 16), 0),
        (branches, (16, 16), 0),
        (one_of_two_weights, (16, 16), 0),
        (jax.grad(lambda x, w: jnp.sum(x @ w)), (16, 16), 1),  # g @ w.T
    ],
)
def test_into_control_flow_and_transformations(fn, w, axis):
    assert plan_of(lambda p, x: fn(x, p["w"]), X, w=w).axis == axis


@pytest.mark.parametrize(
    ("spec", "shards", "pattern", "fits"),
    [
        (P("i", None), 2, "4:8", True),
        (P("i", None), 2, "8:16", False),  # a group would lie on two shards
        (P(None, "i"), 2, "8:16", True),
    ],
)
def test_inside_shard_map_groups_lie_within_shards(spec, shards, pattern, fits):
    mesh = jax.sharding.AbstractMesh((shards,), ("i",), axis_types=(AxisType.Auto,))
    x_spec = P(None, spec[0])

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(x_spec, spec), out_specs=P(None, spec[1])
    )
    def product(x, w):
        y = x @ w
        return lax.psum(y, "i") if spec[0] else y

    leaf = plan_of(lambda p, x: product(x, p["w"]), X, pattern=pattern)
    assert (leaf.axis == 0) == fits
    if not fits:
        assert "split at multiples of 8" in leaf.reason
