"""Products of squared ReLUs are found in programs, and so is what they come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxsparse._trace import BoundJaxpr, find_squared_relus


X = np.ones((16, 32), jnp.bfloat16)
W = np.ones((32, 32), jnp.bfloat16)


def find(fn):
    closed = jax.make_jaxpr(fn)(X)
    return find_squared_relus(BoundJaxpr(closed.jaxpr, closed.consts))


def block(x):
    return jnp.square(jax.nn.relu(x @ W + W[0])) @ W


def scanned(x):
    return lax.scan(lambda x, _: (x + block(x), None), x, length=3)[0]


def of_two_sums(x):
    return jnp.square(jax.nn.relu(x @ W - 2 * ((x + 1) @ W))) @ W


def with_its_input(x):
    h = x @ W
    return jnp.square(jax.nn.relu(h)) @ W, h


def with_its_square(x):
    square = jnp.square(jax.nn.relu(x @ W))
    return square @ W, jnp.mean(square > 0)


def used_twice(x):
    square = jnp.square(jax.nn.relu(x @ W))
    return square @ W, square @ W.T


def through_a_loop(x):
    h = x @ W
    step = lambda total, _: (total + jnp.square(jax.nn.relu(h)) @ W, None)
    return lax.scan(step, x, length=2)[0]


@pytest.mark.parametrize(
    ("fn", "primitives", "sources"),
    [
        (block, [["dot_general"]], 1),
        (jax.checkpoint(block), [["remat2", "dot_general"]], 1),
        (scanned, [["scan", "dot_general"]], 1),
        (of_two_sums, [["dot_general"]], 2),
        (with_its_input, [["dot_general"]], 0),
        (with_its_square, [["dot_general"]], 0),
        (used_twice, [["dot_general"]] * 2, 0),
        (through_a_loop, [["scan", "dot_general"]], 0),
        (lambda x: jax.nn.relu(x @ W) @ W, [], 0),
        (lambda x: jnp.square(x @ W) @ W, [], 0),
        (lambda x: jnp.square(jnp.maximum(x @ W, 1)) @ W, [], 0),
        (lambda x: jnp.square(jax.nn.relu(x[:, :8])) @ W[:8], [], 0),
    ],
)
def test_products_and_sources(fn, primitives, sources):
    found = find(fn)
    names = [[step.primitive for step in path] for path in found.products]
    assert [["remat2" if n == "checkpoint" else n for n in path] for path in names] == (
        primitives
    )
    assert set(found.products.values()) <= {0}
    assert len(found.sources) == sources


def test_the_right_operand():
    # Both axes are contracted as the last one of the square.
    fn = lambda x: lax.dot_general(
        W, jnp.square(jax.nn.relu(x)), (((0,), (1,)), ((), ()))
    )
    found = find(fn)
    assert [*found.products.values()] == [1]


@pytest.mark.parametrize("fn", [block, jax.checkpoint(block), scanned])
def test_gradients_are_refused(fn):
    loss = lambda x: jnp.sum(fn(x).astype(jnp.float32) ** 2)
    with pytest.raises(ValueError, match="as gradients do"):
        find(jax.grad(loss))
