"""Which axes hold the outputs of a product after they are stacked."""

import jax
import jax.numpy as jnp
import pytest

from jaxsparse._trace import graph_of
from jaxsparse._trace.features import move_features
from jaxsparse._trace.jaxpr import BoundJaxpr


def moved(fn, shape, features):
    """The axes of features after the last step of a function."""
    closed = jax.make_jaxpr(fn)(jnp.ones(shape))
    graph = graph_of(BoundJaxpr(closed.jaxpr, closed.consts))
    step = graph.steps[-1]
    return move_features(step, 0, frozenset(features), graph.values)


@pytest.mark.parametrize(
    ("axis", "features", "expected"),
    [(0, {0, 1}, {1, 2}), (1, {0, 1}, {0, 2}), (-1, {0, 1}, {0, 1})],
)
def test_stacking_moves_the_axes_behind_the_new_one(axis, features, expected):
    stack = lambda x: jnp.stack([x, x], axis)
    assert moved(stack, (2, 4), features) == expected


def test_unstacking_removes_its_axis():
    unstack = lambda x: jnp.unstack(x, axis=1)
    assert moved(unstack, (2, 4, 3), {0, 2}) == {0, 1}
