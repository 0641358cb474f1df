"""Weights that are computed with before their product; expected by hand.

A leaf is pruned if zeros in it are zeros of what is multiplied.
"""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jaxsparse as js
from tests.trace.tracing import X, shape, through


KEPT = {
    "sum with itself": lambda w: w + 2 * w,
    "straight-through rounding": lambda w: (
        w + lax.stop_gradient(jnp.round(w / 0.1) * 0.1 - w)
    ),
    "gated by itself": lambda w: w * jax.nn.sigmoid(w),
    "its own softmax as a gate": lambda w: jax.nn.softmax(w, axis=0) * w,
    "interpolated with its scaled self": lambda w: 0.5 * w + 0.5 * w * w.std(),
    "leaky": lambda w: jnp.where(w > 0, w, 0.1 * w),
    "sum with zeros": lambda w: w + jnp.zeros((16, 8)),
    "divided by what has no zeros": lambda w: w / (1 + w * w),
    "clipped": lambda w: jnp.clip(w, -1, 1),
    "clipped above": lambda w: jnp.clip(w, max=0.5),
    "clipped at zero": lambda w: jnp.clip(w, 0, 1),
    "clipped by arrays": lambda w: jnp.minimum(w, jnp.full(8, 2.0)),
    "clamped": lambda w: lax.clamp(-1.0, w, 0.0),
}
LOST = {
    "standardised": (lambda w: jax.nn.standardize(w, axis=0), "reduce_sum"),
    "centred": (lambda w: w - w.mean(0), "reduce_sum"),
    "centred, then scaled": (lambda w: (w - w.mean(0)) * 2, "reduce_sum"),
    "centred, then divided": (lambda w: (w - w.mean(0)) / 2, "reduce_sum"),
    "scaled to unit variance": (
        lambda w: (w - w.mean(0)) * lax.rsqrt(w.var(0) + 1e-5),
        "reduce_sum",
    ),
    "sum with its sorted self": (lambda w: (w + jnp.sort(w, 0)) * 2, "sort"),
    "sum with its exponential": (lambda w: (w + jnp.exp(w)) * 2, "exp"),
    "offset": (lambda w: w + 0.1, "a sum with a constant"),
    "offset, then scaled": (lambda w: 3 * (2 * w - 0.1) / 7, "a sum with a constant"),
    "complement": (lambda w: 1 - w, "a sum with a constant"),
    "unit triangular": (
        lambda w: jnp.tril(w) + jnp.eye(16, 8),
        "a sum with a constant",
    ),
    "sum with its reverse": (lambda w: w + w[::-1], "a sum with itself"),
    "rolled sum": (lambda w: (w + jnp.roll(w, 1, 0)) / 2, "a sum with itself"),
    "folded": (lambda w: w[:8] + w[8:], "a sum with itself"),
    "symmetric": (lambda w: w[:8] + w[:8].T, "a sum with itself"),
    "inverted": (lambda w: 2 / w, "div"),
    "clipped to positive numbers": (lambda w: jnp.clip(w, 0.1, 1), "max"),
    "clipped to negative numbers": (lambda w: jnp.clip(w, -1, -0.1), "min"),
    "clamped to positive numbers": (lambda w: lax.clamp(0.1, w, 1.0), "clamp"),
    "clipped by NaN": (lambda w: jnp.maximum(w, jnp.nan), "max"),
    "clipped by itself": (lambda w: jnp.clip(w, w.min(), w.max()), "reduce_max"),
    "clipped by what overflows": (
        lambda w: jnp.minimum(w.astype(jnp.int8), lax.convert_element_type(200, "i1")),
        "min",
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_zeros_that_stay_zeros_are_planned_without_a_condition(name):
    assert through(KEPT[name]).decision == "2:4 along axis 0"


@pytest.mark.parametrize("name", LOST)
def test_zeros_that_become_others_make_the_leaf_dense(name):
    change, why = LOST[name]
    assert through(change).decision == f"dense: not followed through {why}"


def test_a_mixture_of_two_weights_is_sparse_once_merged():
    """Groups that keep other positions in either have up to four in the mixture."""
    leaf = through(lambda w: jnp.where(w > 0, w, w[:, ::-1]))
    assert leaf.decision == "2:4 along axis 0, until merged"
    # A choice of one of two whole weights is sparse whichever it is.
    leaf = through(lambda w: jnp.where(w[0, 0] > 0, w, w[:, ::-1]))
    assert leaf.decision == "2:4 along axis 0"


USES = {
    # name: (what is multiplied, the shape of `g`, the use of `g`)
    "gain of a norm": (lambda w, g: w * g, (8,), "mul"),
    "scalar gain": (lambda w, g: w * g, (), "mul"),
    "divisor": (lambda w, g: w / g, (16, 1), "div"),
    "gate": (lambda w, g: w * jax.nn.sigmoid(g), (16, 8), "mul"),
    "exponent": (lambda w, g: w * 2.0**g, (), "mul"),
    "choice": (lambda w, g: jnp.where(g > 0, w, 0), (16, 8), "select_n"),
    "branch": (lambda w, g: lax.cond(g > 0, lambda: w, lambda: 2 * w), (), "cond"),
    "coefficient": (lambda w, g: g * w + (1 - g) * w, (), "mul"),
    "start": (
        lambda w, g: lax.dynamic_slice(w, (g.astype(int), 0), (16, 8)),
        (),
        "dynamic_slice",
    ),
    "padding": (lambda w, g: lax.pad(w, g, ((0, 0, 0), (0, 0, 0))), (), "pad"),
    "limit of a loop": (
        lambda w, g: lax.while_loop(
            lambda c: c[0] < g, lambda c: (c[0] + 1, w), (0, w)
        )[1],
        (),
        "while",
    ),
}


@pytest.mark.parametrize("name", USES)
def test_a_parameter_that_is_only_a_factor_or_a_choice_is_used(name):
    change, size, primitive = USES[name]
    params = {"w": shape(16, 8), "g": shape(*size)}
    fn = lambda p, x: x @ change(p["w"], p["g"])
    uses = js.leaf_uses(fn, params, X)
    assert {(use.primitive, use.kind) for use in uses["g"]} >= {
        (primitive, "elementwise")
    }
    assert [use.kind for use in uses["w"]] == ["contraction"]
    rules = [js.Rule(".*", "2:4", sizes=None)]
    plan = js.plan_sparsity(params, rules, fn=fn, args=(X,), dense_head=False)
    assert plan["g"].reason == "not a matmul operand"
    assert plan["w"].decision == "2:4 along axis 0"


@pytest.mark.parametrize("returned", [lambda g: g, lambda g: g + 1, jnp.sum])
def test_a_parameter_that_is_only_returned_is_used(returned):
    params = {"w": shape(16, 8), "g": shape(8)}
    uses = js.leaf_uses(lambda p, x: (x @ p["w"], returned(p["g"])), params, X)
    assert [(use.primitive, use.kind) for use in uses["g"]] == [
        ("return", "elementwise")
    ]


def test_a_parameter_that_a_slice_leaves_out_is_not_used():
    params = {"w": shape(16, 8), "g": shape(16, 8)}
    fn = lambda p, x: x @ jnp.concatenate([p["w"], p["g"]])[:16]
    assert js.leaf_uses(fn, params, X)["g"] == ()
