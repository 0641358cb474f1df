"""Which squared ReLUs are compressed: forms, containers, modules of Flax."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxsparse as js
from tests.compressed.accelerated import calls
from tests.compressed.squared_relus import (
    HIDDEN,
    SIGNS,
    WIDTH,
    assert_exact,
    block,
    by_hand,
    loss,
    whole,
)


def twice(h):
    r = jax.nn.relu(h)
    return r * r


SQUARES = {
    "relu ** 2": lambda h: jax.nn.relu(h) ** 2,
    "square": lambda h: jnp.square(jax.nn.relu(h)),
    "maximum": lambda h: jnp.maximum(h, 0) ** 2,
    "power": lambda h: jax.nn.relu(h) ** 2.0,
    "product": twice,
    "called": jax.jit(lambda h: jax.nn.relu(h) ** 2),
    "scaled": lambda h: jax.nn.relu(-(-h * 1 / 1)) ** 2,
    "split": lambda h: (
        jax.nn.relu(h.astype("float32").reshape(4, 8, HIDDEN).astype(h.dtype)) ** 2
    ),
}


@pytest.mark.sweep(keep=["square", "maximum", "split"])
@pytest.mark.parametrize("name", SQUARES)
def test_squared_relus_are_found(name):
    params, x = whole()
    fn = partial(loss, square=SQUARES[name])
    fast = js.accelerate(fn, None, activations=True, implementation="xla")
    _, gradients, *_ = by_hand(params, x)
    step = jax.grad(fast, argnums=(0, 1))
    assert_exact(jax.jit(step)(params, x), gradients, "bfloat16")
    assert len(calls(step, params, x, name="decompress")) == 4


CONTAINERS = {
    "checkpoint": jax.checkpoint(loss),
    "three axes": lambda p, x: loss(p, x.reshape(2, 16, WIDTH)),
    "cond": lambda p, x: lax.cond(x[0, 0] < 5, loss, lambda *_: 0.0, p, x),
    "scan": lambda p, x: lax.scan(lambda c, x: (c, loss(p, x)), 0, x[None])[1][0],
}


@pytest.mark.sweep(keep=["checkpoint", "scan"])
@pytest.mark.parametrize("name", CONTAINERS)
def test_inside_calls_branches_and_loops(name):
    params, x = whole()
    fast = js.accelerate(CONTAINERS[name], None, activations=True, implementation="xla")
    value, gradients, *_ = by_hand(params, x)
    step = jax.value_and_grad(fast, argnums=(0, 1))
    got = jax.jit(step)(params, x)
    assert float(got[0]) == value
    assert_exact(got[1], gradients, "bfloat16")
    assert calls(step, params, x, name="decompress")


@pytest.mark.sweep(keep=["linen"])
@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_modules_of_flax(library):
    params, x = whole()
    if library == "linen":
        dense = partial(nn.Dense, dtype=jnp.bfloat16, param_dtype=jnp.float32)
        model = nn.Sequential(
            [dense(HIDDEN), lambda h: jnp.square(nn.relu(h)), dense(WIDTH)]
        )
        tree = {
            "layers_0": {"kernel": params["up"], "bias": params["bias"]},
            "layers_2": {"kernel": params["down"], "bias": np.zeros(WIDTH, "float32")},
        }
        apply = lambda tree, x: model.apply({"params": tree}, x)
        pick = lambda tree: (tree["layers_0"]["kernel"], tree["layers_2"]["kernel"])
    else:
        linear = partial(nnx.Linear, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        up, down = linear(WIDTH, HIDDEN), linear(HIDDEN, WIDTH)
        up.kernel[...] = params["up"].astype(np.float32)
        up.bias = nnx.Param(jnp.asarray(params["bias"], jnp.float32))
        down.kernel[...] = params["down"].astype(np.float32)
        model = nnx.Sequential(up, lambda h: nnx.relu(h) ** 2, down)
        graph, tree = nnx.split(model)
        apply = lambda tree, x: nnx.merge(graph, tree)(x)
        pick = lambda tree: (
            tree["layers"][0]["kernel"][...],
            tree["layers"][2]["kernel"][...],
        )

    fn = lambda tree, x: jnp.sum(apply(tree, x).astype(jnp.float32) * SIGNS)
    fast = js.accelerate(fn, None, activations=True, implementation="xla")
    step = jax.grad(fast)
    _, (exact, _), *_ = by_hand(params, x)
    up, down = pick(jax.jit(step)(tree, x))
    assert_exact((up, down), (exact["up"], exact["down"]), "bfloat16")
    # Nobody asks for the gradient of the rows, nor for the loss.
    assert len(calls(step, tree, x, name="decompress")) == 4


def wide(h):
    return jnp.square(jax.nn.relu(h).astype("float32")).astype(h.dtype)


def saved_apart(h):
    return jnp.square(jax.checkpoint(jax.nn.relu)(h))


OTHERS = {"gelu": lambda h: jax.nn.gelu(h) ** 2, "relu": jax.nn.relu}
OTHERS |= {"wide": wide, "saved apart": saved_apart}


@pytest.mark.sweep(keep=["float32", "gelu"])
@pytest.mark.parametrize("case", ["float32", "rows", "columns", *OTHERS])
def test_all_else_stays_as_it_is(case):
    params, x = whole("float32" if case == "float32" else "bfloat16")
    fn = partial(block, square=OTHERS.get(case, SQUARES["square"]))
    if case == "rows":
        x = x[:24]
    if case == "columns":
        params = {"up": params["up"][:, :40], "bias": params["bias"][:40]} | {
            "down": params["down"][:40]
        }
    fast = js.accelerate(fn, None, activations=True, implementation="xla")
    run = lambda f: jax.jit(jax.vjp(f, params, x)[1])(
        jnp.ones((len(x), WIDTH), x.dtype)
    )
    jax.tree.map(np.testing.assert_array_equal, run(fast), run(fn))
    np.testing.assert_array_equal(*(jax.jit(f)(params, x) for f in (fast, fn)))
    assert not calls(fast, params, x, name="decompress")
    assert js.dropped_activations(fn, params, x) == {}
