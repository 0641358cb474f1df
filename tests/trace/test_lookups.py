"""Products with one-hot values are lookups: the weight stays dense, as if indexed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

import jaxsparse as js
from tests.trace.tracing import plan_of, shape


TOKENS = shape(4, 6, dtype="int32")
CHOICES = np.arange(16)


def looped(w, tokens):
    step = lambda _, t: (None, jax.nn.one_hot(t, 16) @ w)
    return lax.scan(step, None, tokens)[1]


LOOKUPS = {
    "one_hot": lambda w, t: jax.nn.one_hot(t, 16) @ w,
    "one_hot in bfloat16": lambda w, t: (
        jax.nn.one_hot(t, 16, dtype="bfloat16") @ w.astype("bfloat16")
    ),
    "one_hot along another axis": lambda w, t: jnp.einsum(
        "bvs,vd->bsd", jax.nn.one_hot(t, 16, axis=1), w
    ),
    "merged tokens": lambda w, t: jax.nn.one_hot(t, 16).reshape(24, 16) @ w,
    "weight first": lambda w, t: w.T @ jax.nn.one_hot(t.reshape(-1), 16).T,
    "comparison": lambda w, t: (t[..., None] == jnp.arange(16)).astype("float32") @ w,
    "comparison with a constant": lambda w, t: (
        (t[..., None] == CHOICES).astype("float32") @ w
    ),
    "comparison from one": lambda w, t: (
        (t[..., None] == jnp.arange(16) + 1).astype("float32") @ w
    ),
    "where": lambda w, t: jnp.where(t[..., None] == jnp.arange(16), 1.0, 0.0) @ w,
    "identity": lambda w, t: jnp.eye(16)[t] @ w,
    "padding masked": lambda w, t: (jax.nn.one_hot(t, 16) * (t > 0)[..., None]) @ w,
    "scaled": lambda w, t: 4.0 * jax.nn.one_hot(t, 16) @ (w / 2),
    "bag of words": lambda w, t: jax.nn.one_hot(t, 16).sum(1) @ w,
    "two tokens": lambda w, t: (
        (jax.nn.one_hot(t[:, 0], 16) + jax.nn.one_hot(t[:, 1], 16)) @ w
    ),
    "nearest": lambda w, t: jax.nn.one_hot(jnp.argmin(t, -1), 16) @ w,
    "positions": lambda w, t: t[..., None] + jax.nn.one_hot(jnp.arange(6), 16) @ w,
    "in a scan": looped,
    "scanned one-hot values": lambda w, t: lax.map(
        lambda hot: hot @ w, jax.nn.one_hot(t, 16)
    ),
    "one-hot values that a scan stacks": lambda w, t: (
        lax.map(lambda t: jax.nn.one_hot(t, 16), t) @ w
    ),
    "vmapped": lambda w, t: jax.vmap(lambda t: jax.nn.one_hot(t, 16) @ w)(t),
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_a_product_with_a_one_hot_value_is_a_lookup(name):
    fn = lambda p, t: LOOKUPS[name](p["w"], t)
    assert plan_of(fn, TOKENS).reason == "gathered"
    params = {"w": shape(16, 8)}
    assert {use.kind for use in js.leaf_uses(fn, params, TOKENS)["w"]} == {"gather"}


X = shape(4, 16)
PRODUCTS = {
    # name: (a function of w, x and one token for each of 4 rows, shape of w, axis)
    "tokens that are activations": (
        lambda w, x, t: (x * (t > 3)[:, None]) @ w,
        (16, 8),
        0,
    ),
    "mask of equal tokens": (
        lambda w, x, t: ((t[:, None] == t[None]).astype("float32") @ x) @ w,
        (16, 8),
        0,
    ),
    "causal mask": (
        lambda w, x, t: (jnp.tril(jnp.ones((4, 4))) * t @ x) @ w,
        (16, 8),
        0,
    ),
    "dispatch to experts": (
        lambda w, x, t: jnp.einsum(
            "ted,edf->tf", jax.nn.one_hot(t, 4)[..., None] * x[:, None], w
        ),
        (4, 16, 8),
        1,
    ),
    "experts in a batch": (
        lambda w, x, t: jnp.einsum(
            "etd,edf->etf", jnp.einsum("te,td->etd", jax.nn.one_hot(t, 4), x), w
        ),
        (4, 16, 8),
        1,
    ),
    "one-hot beside features": (
        lambda w, x, t: jnp.concatenate([jax.nn.one_hot(t, 4), x], 1) @ w,
        (20, 8),
        0,
    ),
    "smoothed": (
        lambda w, x, t: (0.9 * jax.nn.one_hot(t, 16) + 0.1 * jax.nn.softmax(x)) @ w,
        (16, 8),
        0,
    ),
}


def numbered_layers(w, x, _):
    """Each layer gets its number, as one that writes to a stacked cache does."""
    layers = (jnp.arange(3), w)
    return lax.scan(
        lambda x, layer: ((x + layer[0][None]) @ layer[1], None), x, layers
    )[0]


PRODUCTS["numbered layers"] = (numbered_layers, (3, 16, 16), 1)


@pytest.mark.parametrize("name", PRODUCTS)
def test_other_products_of_integers_and_masks_are_no_lookups(name):
    change, w, axis = PRODUCTS[name]
    fn = lambda p, x, t: change(p["w"], x, t)
    assert plan_of(fn, X, shape(4, dtype="int32"), w=w).axis == axis


def test_an_embedding_by_one_hot_has_the_plan_of_an_indexed_one():
    class Model(nn.Module):
        indexed: bool

        @nn.compact
        def __call__(self, tokens):
            table = self.param("table", nn.initializers.normal(), (64, 32))
            x = table[tokens] if self.indexed else jax.nn.one_hot(tokens, 64) @ table
            return nn.Dense(64, name="out")(nn.relu(nn.Dense(32, name="hidden")(x)))

    plans = []
    for indexed in (True, False):
        model = Model(indexed)
        params = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((2, 5), int))
        args = (jax.ShapeDtypeStruct((2, 5), "int32"),)
        plans.append(js.plan_sparsity(params, "2:4", fn=model.apply, args=args))
    assert plans[0] == plans[1]
    assert plans[1]["params/table"].reason == "gathered"
    assert plans[1]["params/hidden/kernel"].axis == 0
    tied = lambda p, t: (jax.nn.one_hot(t, 16) @ p["w"]) @ p["w"].T
    assert "tied embedding" in plan_of(tied, TOKENS).reason
