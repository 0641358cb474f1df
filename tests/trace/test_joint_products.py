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
    """How many products each joint equation has, and how many weights it has ahead."""
    found = map(joint_products, join_products(traced(fn, *args)).jaxpr.eqns)
    return [(len(joint.eqns), joint.num_ahead) for joint in found if joint]


x, square = jnp.ones((3, 8)), jnp.ones((8, 8))
cube = jnp.ones((8, 2, 4))


def project(x, q, k, v, out):
    q, k, v = (jnp.einsum("td,dhk->thk", x, w) for w in (q, k, v))
    mixed = jnp.einsum("hts,shk->thk", jnp.einsum("thk,shk->hts", q, k), v)
    return jnp.einsum("thk,hkd->td", mixed, out)


def test_projections_are_joined_and_know_the_weights_of_the_next():
    out = jnp.ones((2, 4, 8))
    assert joined(project, x, cube, cube, cube, out) == [(3, 1), (1, 0)]


@pytest.mark.parametrize(
    ("fn", "groups"),
    [
        (lambda x, a, b: [x @ a, x @ b, x @ a], [(3, 0)]),
        (
            lambda x, a, b: [jnp.tensordot(a, x, (0, 1)), jnp.tensordot(b, x, (0, 1))],
            [(2, 0)],
        ),
        (lambda x, a, b: [x @ a, jnp.tensordot(x, b, ((), ()))], [(1, 1), (1, 0)]),
        (lambda x, a, b: jax.nn.silu(x @ a) * (x @ b), [(2, 0)]),
        (lambda x, a, b: [x @ a, x @ b.T.astype(jnp.int8).astype(x.dtype)], [(2, 0)]),
        # Transposed, a weight is not yet in memory; reshaped it is.
        (lambda x, a, b: (x @ a) @ b.T, [(1, 0), (1, 0)]),
        (lambda x, a, b: (x @ a) @ b.reshape(64).reshape(8, 8), [(1, 1), (1, 0)]),
        (lambda x, a, b: [x @ a, x @ (a + b)], [(1, 0)]),  # the sum is no weight
        (lambda x, a, b: [x @ a, (x @ a) @ b, x @ b], [(2, 1), (1, 1), (1, 0)]),
        # Another product keeps them apart.
        (lambda x, a, b: [x @ a, x @ x.T, x @ b], [(1, 1), (1, 0)]),
        (lambda x, a, b: [x @ a, (2 * x) @ b], [(1, 1), (1, 0)]),
        (lambda x, a, b: a[0] @ (x.T + a[:, :3] + b[:, :3]), []),
    ],
)
def test_what_is_joined(fn, groups):
    assert joined(lambda x, a, b: fn(jnp.tanh(x), a, b), x, square, square) == groups


def test_a_joint_jaxpr_computes_the_same():
    def apart(site, inputs, state):
        if (joint := joint_products(site.eqn)) is None:
            return None, state
        pairs, ahead = joint.split(inputs)
        assert len(ahead) == joint.num_ahead
        zipped = zip(joint.eqns, pairs, strict=True)
        return [eqn.primitive.bind(*pair, **eqn.params) for eqn, pair in zipped], state

    weights = [*jax.random.normal(jax.random.key(0), (3, 8, 2, 4)), jnp.ones((2, 4, 8))]
    bound = join_products(traced(project, x, *weights))
    outputs, _ = evaluate(bound, [x, *weights], apart)
    np.testing.assert_array_equal(outputs[0], project(x, *weights))
