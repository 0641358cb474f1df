"""Which products are joined to one equation, and where that equation stands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse._trace import evaluate, join_products, joint_products
from jaxsparse._trace.jaxpr import BoundJaxpr


def traced(fn, *args):
    closed = jax.make_jaxpr(fn)(*args)
    return BoundJaxpr(closed.jaxpr, closed.consts)


def joined(fn, *args):
    """How many products each joint equation has."""
    found = map(joint_products, join_products(traced(fn, *args)).jaxpr.eqns)
    return [len(joint.eqns) for joint in found if joint]


x, square = jnp.ones((3, 8)), jnp.ones((8, 8))
cube = jnp.ones((8, 2, 4))


def project(x, q, k, v, out):
    q, k, v = (jnp.einsum("td,dhk->thk", x, w) for w in (q, k, v))
    mixed = jnp.einsum("hts,shk->thk", jnp.einsum("thk,shk->hts", q, k), v)
    return jnp.einsum("thk,hkd->td", mixed, out)


def test_projections_are_joined():
    assert joined(project, x, cube, cube, cube, jnp.ones((2, 4, 8))) == [3]


@pytest.mark.parametrize(
    ("fn", "groups"),
    [
        (lambda x, a, b: [x @ a, x @ b, x @ a], [3]),
        (lambda x, a, b: [jnp.tensordot(w, x, (0, 1)) for w in (a, b)], [2]),
        (lambda x, a, b: [x @ a, jnp.tensordot(x, b, ((), ()))], []),
        (lambda x, a, b: [jax.nn.silu(x @ a) * (x @ b), (x + 1) @ a, (x + 1) @ b], [2]),
        (lambda x, a, b: [x @ a, x @ b.T.astype(jnp.int8).astype(x.dtype)], [2]),
        (lambda x, a, b: [x @ a, x @ (a + b)], []),  # the sum is no weight
        (lambda x, a, b: [x @ a, x @ x.T, x @ b], []),  # another is between them
        (lambda x, a, b: [x @ a, (2 * x) @ b], []),
        (lambda x, a, b: a[0] @ (x.T + a[:, :3] + b[:, :3]), []),
    ],
)
def test_what_is_joined(fn, groups):
    assert joined(lambda x, a, b: fn(jnp.tanh(x), a, b), x, square, square) == groups


def test_a_joint_jaxpr_computes_the_same():
    def apart(site, inputs, state):
        if (joint := joint_products(site.eqn)) is None:
            return None, state
        each = zip(joint.eqns, joint.split(inputs), strict=True)
        return [eqn.primitive.bind(*pair, **eqn.params) for eqn, pair in each], state

    weights = [*jax.random.normal(jax.random.key(0), (3, 8, 2, 4)), jnp.ones((2, 4, 8))]
    bound = join_products(traced(project, x, *weights))
    outputs, _ = evaluate(bound, [x, *weights], apart)
    np.testing.assert_array_equal(outputs[0], project(x, *weights))
