"""Gradients on compressed weights are those of the masked dense function."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxsparse as js
from tests.compressed.accelerated import BOTH, agrees, calls, planned, whole


def layers(params, x):
    h = jax.nn.relu(x @ params["up"]) @ params["down"]
    return jnp.sum(h * h)


LAYERS = {"up": whole(16, 32), "down": whole(32, 16, seed=1)}
X = whole(6, 16, seed=2)


def by_hand(params, x):
    """The loss and the gradients of `layers` in float64."""
    up, down, x = (np.asarray(a, np.float64) for a in (*params, x))
    before = x @ up
    h = np.maximum(before, 0)
    y = h @ down
    back = (2 * y @ down.T) * (before > 0)
    return np.sum(y * y), x.T @ back, h.T @ (2 * y)


@pytest.mark.sweep(keep=["bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gradients_of_whole_numbers_are_exact(dtype):
    params = {name: whole(16, 16, high=1, seed=i) for i, name in enumerate(LAYERS)}
    params = jax.tree.map(lambda w: w.astype(ml_dtypes.bfloat16).astype(dtype), params)
    x = whole(2, 16, seed=5, high=1).astype(dtype)
    params, plan = planned(layers, params, x)
    fast = js.accelerate(layers, plan, implementation="xla")
    loss, gradient = jax.jit(jax.value_and_grad(fast))(params, x)
    exact = by_hand((params["up"], params["down"]), x)
    # All numbers on the way are whole and of few bits.
    assert np.abs(exact[1]).max() <= 256
    assert np.abs(exact[2]).max() <= 256
    np.testing.assert_array_equal(np.asarray(gradient["up"], float), exact[1])
    np.testing.assert_array_equal(np.asarray(gradient["down"], float), exact[2])
    np.testing.assert_allclose(float(loss), exact[0], rtol=2**-8)


@pytest.mark.sweep
def test_random_gradients_are_within_rounding():
    rng = np.random.default_rng(0)
    params = {"up": rng.normal(size=(64, 64)), "down": rng.normal(size=(64, 64))}
    params = jax.tree.map(lambda w: w.astype(np.float32) / 8, params)
    x = rng.normal(size=(8, 64)).astype(np.float32)
    params, plan = planned(layers, params, x)
    fast = js.accelerate(layers, plan, implementation="xla")
    gradient = jax.jit(jax.grad(fast))(params, x)
    _, up, down = by_hand((params["up"], params["down"]), x)
    # Three products of 64 terms, one after the other.
    np.testing.assert_allclose(gradient["up"], up, atol=2e-5 * np.abs(up).max())
    np.testing.assert_allclose(gradient["down"], down, atol=2e-5 * np.abs(down).max())


@pytest.mark.sweep
def test_all_products_but_that_of_the_weight_are_compressed():
    # Forward twice and backward twice, also for x: it may be a result.
    agrees(layers, LAYERS, X, products=4)


def test_a_pattern_along_one_axis_has_dense_products_backward():
    agrees(layers, LAYERS, X, pattern="2:4", products=2)


@pytest.mark.parametrize(
    "pattern", ["4:8", "1:8", js.NM(4, 8, transposable=True), "2:4"]
)
@pytest.mark.sweep
def test_other_patterns_that_compress(pattern):
    both = getattr(pattern, "transposable", False)
    agrees(layers, LAYERS, X, pattern=pattern, products=4 if both else 2)


@pytest.mark.sweep
def test_patterns_that_do_not_compress_stay_dense():
    agrees(layers, LAYERS, X, pattern=js.Unstructured(0.5), products=0)
    agrees(layers, LAYERS, X, pattern=js.Block((4, 4), 0.5), products=0)


MOVES = {
    "transposed": (lambda w: w.T, (32, 16)),
    "stored out, in": (lambda w: w.T[None].squeeze(0), (32, 16)),
    "heads": (lambda w: w.reshape(16, 32), (16, 4, 8)),
    "merged heads": (lambda w: w.reshape(16, 32), (2, 8, 32)),
    "split and merged": (lambda w: w.reshape(16, 4, 8).reshape(16, 32), (16, 32)),
    "swapped heads": (
        lambda w: (
            w.reshape(16, 4, 8).transpose(1, 0, 2).transpose(1, 0, 2).reshape(16, 32)
        ),
        (16, 32),
    ),
    "a layer of a stack": (lambda w: w[1], (3, 16, 32)),
    "a traced layer": (lambda w: w[jnp.int32(1) + 0], (3, 16, 32)),
    "there and back": (lambda w: w.astype(jnp.bfloat16).astype(jnp.float32), (16, 32)),
}


@pytest.mark.sweep(keep=["merged heads", "a layer"])
@pytest.mark.parametrize("name", MOVES)
def test_moved_weights_take_their_forms_along(name):
    move, shape = MOVES[name]
    fn = lambda params, x: jnp.sum((x @ move(params["w"])) ** 2)
    agrees(fn, {"w": whole(*shape)}, X, products=2)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: 2 * w,
        lambda w: w.ravel("F").reshape(16, 32),
        lambda w: lax.reshape(w, (16, 32), (1, 0)),
        lambda w: lax.fori_loop(0, 2, lambda _, w: w * 2, w),
        jnp.abs,
    ],
)
@pytest.mark.sweep
def test_changed_weights_are_dense(change):
    params = {"w": whole(16, 32)}
    plan = js.plan_sparsity(params, [js.Rule("w", "2:4", axis=0)])
    fn = lambda params, x: jnp.sum((x @ change(params["w"])) ** 2)
    fast = js.accelerate(fn, plan, masks="best", implementation="xla")
    assert not calls(jax.grad(fast), params, X, name="decompress")
    masked = lambda p, x: fn(js.straight_through(p, plan), x)
    got, wanted = (jax.grad(f)(params, X)["w"] for f in (fast, masked))
    np.testing.assert_array_equal(got, wanted)


def test_attention_kernels_of_three_axes():
    params = {
        "query": whole(16, 2, 8),
        "out": whole(2, 8, 16, seed=1),
        "flat": whole(16, 16, seed=2),
    }

    def fn(params, x):
        heads = jnp.einsum("te,ehd->thd", x, params["query"])
        return jnp.sum(jnp.einsum("thd,hde->te", heads, params["out"]) @ params["flat"])

    agrees(fn, params, X, products=6)


@pytest.mark.sweep
def test_einsum_weights_on_the_left_and_vectors():
    fn = lambda params, x: jnp.sum(jnp.einsum("oi,...i->...o", params["w"], x) ** 2)
    for x in (X, X[0], X.reshape(2, 3, 16)):
        agrees(fn, {"w": whole(32, 16)}, x, products=2)


@pytest.mark.sweep
def test_tied_and_shared_weights():
    def fn(params, ids):
        x = params["table"][ids]
        x = jnp.tanh(x @ params["w"]) + x @ params["w"].T
        return jnp.sum(jnp.round(x) @ params["table"].T) + jnp.sum(x @ params["w"])

    params = {"table": whole(32, 16), "w": whole(16, 16, seed=1)}
    rules = [js.Rule(".*", BOTH, sizes=None, axis=1), js.Rule(".*", None)]
    masked = js.mask_params(params, js.create_masks(params, rules))
    fast = js.accelerate(fn, rules, implementation="xla")
    ids = jnp.array([3, 1, 3])
    got, wanted = (jax.value_and_grad(f)(masked, ids) for f in (fast, fn))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, wanted)


def test_both_derivatives_of_a_gradient():
    """A penalty of the gradient: products of the backward pass are differentiated."""

    def penalty(loss):
        of_x = jax.grad(loss, argnums=1)
        return jax.grad(lambda params, x: jnp.sum(of_x(params, x) ** 2))

    params = {name: whole(16, 16, high=1, seed=i) for i, name in enumerate(LAYERS)}
    x = whole(3, 16, high=1)
    params, plan = planned(layers, params, x)
    fast = js.accelerate(layers, plan, implementation="xla")
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.jit(penalty(fast))(params, x),
        penalty(layers)(params, x),
    )


@pytest.mark.sweep
def test_batches_of_inputs_and_of_parameters():
    params, _, fast = agrees(layers, LAYERS, X, products=4)
    xs = jnp.stack([X, -X, 2 * X])
    ensemble = jax.tree.map(lambda w: jnp.stack([w, -w, w]), params)
    for args in ((None, 0), (0, None), (0, 0)):
        operands = ensemble if args[0] == 0 else params, xs if args[1] == 0 else X
        got, wanted = (
            jax.jit(jax.vmap(jax.grad(f), in_axes=args))(*operands)
            for f in (fast, layers)
        )
        jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_auxiliary_results_and_donated_parameters():
    def fn(params, x, *, scale):
        h = x @ params["up"]
        return scale * jnp.sum(h), {"h": h, "name": "up", "n": 3, "none": None}

    params, plan = planned(lambda p, x: fn(p, x, scale=2)[0], {"up": LAYERS["up"]}, X)
    fast = js.accelerate(fn, plan, implementation="xla")
    (value, aux), gradient = jax.value_and_grad(fast, has_aux=True)(params, X, scale=2)
    (wanted, other), exact = jax.value_and_grad(fn, has_aux=True)(params, X, scale=2)
    assert value == wanted
    assert aux.keys() == other.keys()
    assert (aux["name"], aux["n"], aux["none"]) == ("up", 3, None)
    np.testing.assert_array_equal(aux["h"], other["h"])
    np.testing.assert_array_equal(gradient["up"], exact["up"])

    def step(params, x):
        grads = jax.grad(lambda p: fast(p, x, scale=2)[0])(params)
        return jax.tree.map(lambda w, g: w - g, params, grads)

    copies = jax.tree.map(jnp.copy, params)
    new = jax.jit(step, donate_argnums=0)(copies, X)
    np.testing.assert_array_equal(new["up"], params["up"] - exact["up"])


def linen():
    model = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(16)])
    params = model.init(jax.random.key(0), X)["params"]
    return lambda p, x: jnp.sum(jnp.square(model.apply({"params": p}, x))), params


def attention():
    model = nnx.MultiHeadAttention(2, 16, decode=False, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model, nnx.Param)
    return lambda p, x: jnp.sum(nnx.merge(graph, p)(x[None]) ** 2), params


def equinox():
    net = eqx.nn.MLP(16, 16, 32, depth=2, key=jax.random.key(0))
    params, static = eqx.partition(net, eqx.is_array)
    fn = lambda p, x: jnp.sum(jax.vmap(eqx.combine(p, static))(x) ** 2)
    return fn, params


@pytest.mark.sweep
@pytest.mark.parametrize("model", [linen, attention, equinox])
def test_models(model):
    fn, params = model()
    params, plan = planned(fn, params, X)
    fast = js.accelerate(fn, plan, implementation="xla")
    got, wanted = (jax.jit(jax.value_and_grad(f))(params, X) for f in (fast, fn))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, wanted
    )
    products = 2 * len(plan.sparse)
    assert len(calls(jax.grad(fast), params, X, name="decompress")) == products


@pytest.mark.sweep(keep=["pattern0-True"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("pattern", [BOTH, "2:4"])
def test_masks_prune_whatever_the_weights_hold(pattern, packed):
    """As `straight_through`: the loss sees masked weights, gradients are dense."""
    plan = planned(layers, LAYERS, X, pattern=pattern)[1]
    masks = js.create_masks(LAYERS, plan, packed=packed)
    fn = lambda p, x, m: layers(js.straight_through(p, m), x)

    def fast(params, x, masks):
        options = {"masks": masks, "implementation": "xla"}
        return js.accelerate(layers, plan, **options)(params, x)

    got, wanted = (jax.jit(jax.grad(f))(LAYERS, X, masks) for f in (fast, fn))
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


@pytest.mark.sweep(keep=["pattern0"])
@pytest.mark.parametrize("pattern", [BOTH, "2:4", js.Unstructured(0.5)])
def test_the_best_masks_are_found_at_each_call(pattern):
    plan = planned(layers, LAYERS, X, pattern=pattern)[1]
    fn = lambda p, x: layers(js.straight_through(p, plan), x)
    fast = js.accelerate(layers, plan, masks="best", implementation="xla")
    got, wanted = (jax.jit(jax.grad(f))(LAYERS, X) for f in (fast, fn))
    jax.tree.map(np.testing.assert_array_equal, got, wanted)
