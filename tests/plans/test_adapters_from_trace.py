"""Low-rank adapters, recognised by their products."""

import jax
import jax.numpy as jnp
import pytest

import jaxsparse as js
from tests.plans.roles import (
    CLASSES,
    MIXTURE,
    RANK,
    RULES,
    WIDTH,
    X,
    roles,
    top_k_of_softmax,
)


LAYERS = {"w1": (WIDTH, WIDTH), "w2": (WIDTH, WIDTH), "head": (WIDTH, CLASSES)}


def adapted(layer):
    """A network of two adapted layers and a head."""

    def model(p, x, *args):
        for i in "12":
            x = jnp.tanh(layer(x, p["w" + i], p["a" + i], p["b" + i], *args))
        return x @ p["head"]

    return model


def plain(x, w, a, b):
    return x @ w + (x @ a) @ b


def scaled(x, w, a, b):
    return 2.0 * ((x @ a) @ b) / RANK + (x @ w).astype("float32")


def with_dropout(x, w, a, b, key):
    kept = jax.random.bernoulli(key, 0.9, x.shape)
    return x @ w + jnp.where(kept, x / 0.9, 0) @ a @ b * 0.5


def merged(x, w, a, b):
    return x @ (w + 2 * (a @ b))


def in_16_bits(x, w, a, b):
    half = jnp.bfloat16
    low = (x.astype(half) @ a.astype(half)) @ b.astype(half)
    return x @ w + low.astype("float32")


def by_heads(x, w, a, b):
    w, b = w.reshape(WIDTH, 4, 8), b.reshape(-1, 4, 8)
    low = jnp.einsum("tr,rhd->thd", x @ a, b)
    return (jnp.einsum("te,ehd->thd", x, w) + low).reshape(x.shape)


def residual_and_bias(x, w, a, b):
    return x + (x @ w + 1.0) + (x @ a) @ b


@pytest.mark.parametrize(
    "layer",
    [plain, scaled, with_dropout, merged, in_16_bits, by_heads, residual_and_bias],
)
def test_low_rank_terms_beside_a_layer_are_adapters(layer):
    factors = {
        name + i: (WIDTH, RANK) if name == "a" else (RANK, WIDTH)
        for i in "12"
        for name in "ab"
    }
    args = (X, jax.eval_shape(lambda: jax.random.key(0)))
    args = args if layer is with_dropout else (X,)
    expected = {"head": {"head"}, "adapter": factors.keys()}
    assert roles(adapted(layer), *args, **LAYERS, **factors) == expected
    loss = lambda *args: jnp.mean(adapted(layer)(*args) ** 2)
    assert roles(loss, *args, **LAYERS, **factors) == expected


def test_adapters_of_frozen_layers_that_are_arguments():
    """Only the adapters are trained, so only they are parameters."""
    factors = {
        name + i: (WIDTH, RANK) if name == "a" else (RANK, WIDTH)
        for i in "12"
        for name in "ab"
    }
    base = {
        name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in LAYERS.items()
    }
    params = {
        name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in factors.items()
    }
    for layer in (plain, merged):
        fn = lambda p, base, x, layer=layer: adapted(layer)({**base, **p}, x)
        with pytest.raises(ValueError, match="adapter; pass dense_adapter=False"):
            js.plan_sparsity(params, RULES, fn=fn, args=(base, X))
        plan = js.plan_sparsity(
            params, RULES, fn=fn, args=(base, X), dense_adapter=False
        )
        axes = {leaf.path[0]: leaf.axis for leaf in plan.leaves}
        assert axes == {"a": 1 if layer is merged else 0, "b": 0}


@pytest.mark.parametrize(
    ("layer", "rank"),
    [
        (plain, WIDTH),  # not below both sizes
        (merged, WIDTH),
        (lambda x, w, a, b: x @ w @ a @ b, RANK),  # a bottleneck in series
        (lambda x, w, a, b: x @ w + jnp.tanh(x @ a) @ b, RANK),  # not linear
        (lambda x, w, a, b: jnp.tanh(x @ w) + jnp.tanh(x @ a @ b), RANK),
        (lambda x, w, a, b: x @ w + jnp.sin(x) @ a @ b, RANK),  # of another input
    ],
)
def test_other_products_of_two_layers_are_no_adapters(layer, rank):
    factors = {
        name + i: (WIDTH, rank) if name == "a" else (rank, WIDTH)
        for i in "12"
        for name in "ab"
    }
    assert roles(adapted(layer), **LAYERS, **factors) == {"head": {"head"}}


def test_adapters_of_a_convolution():
    def fn(p, x):
        conv = lambda x, w: jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        hidden = jnp.tanh(conv(x, p["w"]) + conv(conv(x, p["a"]), p["b"]))
        return hidden.mean((1, 2)) @ p["head"]

    shapes = {
        "w": (3, 3, WIDTH, WIDTH),
        "a": (3, 3, WIDTH, RANK),
        "b": (1, 1, RANK, WIDTH),
        "head": (WIDTH, CLASSES),
    }
    image = jax.ShapeDtypeStruct((2, 8, 8, WIDTH), "float32")
    assert roles(fn, image, **shapes) == {"head": {"head"}, "adapter": {"a", "b"}}


def test_roles_inside_a_scan_over_layers():
    def fn(p, x):
        def block(x, layer):
            w, a, b, router, up, down = layer
            x = x + jnp.tanh(plain(x, w, a, b))
            mixture = {"router": router, "up": up, "down": down}
            return x + top_k_of_softmax(mixture, x), None

        names = ("w", "a", "b", "router", "up", "down")
        x, _ = jax.lax.scan(jax.checkpoint(block), x, tuple(p[n] for n in names))
        return jnp.mean(jax.nn.logsumexp(x @ p["head"], -1))

    shapes = {
        "w": (WIDTH, WIDTH),
        "a": (WIDTH, RANK),
        "b": (RANK, WIDTH),
        **{name: MIXTURE[name] for name in ("router", "up", "down")},
    }
    stacked = {name: (3, *shape) for name, shape in shapes.items()}
    assert roles(fn, **stacked, head=(WIDTH, CLASSES)) == {
        "head": {"head"},
        "adapter": {"a", "b"},
        "router": {"router"},
    }
