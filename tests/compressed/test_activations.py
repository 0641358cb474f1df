"""Squared ReLUs on compressed activations: the masked function and its gradients."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxsparse as js
from tests.compressed.accelerated import BOTH, calls
from tests.compressed.forms_oracle import best_masks


ROWS, WIDTH, HIDDEN = 32, 16, 48
SIGNS = np.random.default_rng(1).integers(-1, 2, (ROWS, WIDTH)).astype(np.float32)


def block(params, x, square=lambda h: jax.nn.relu(h) ** 2):
    h = x @ params["up"].astype(x.dtype) + params["bias"].astype(x.dtype)
    return square(h) @ params["down"].astype(x.dtype)


def loss(params, x, **kwargs):
    y = block(params, x, **kwargs).astype(jnp.float32)
    return jnp.sum(y * SIGNS.reshape(y.shape))


def whole(dtype="bfloat16", seed=0):
    """Parameters and rows of whole numbers, of which sums and products are exact."""
    rng = np.random.default_rng(seed)
    draw = lambda values, *shape: rng.choice(values, shape).astype(np.float32)
    params = {
        "up": draw([-1, 0, 0, 1], WIDTH, HIDDEN),
        "bias": draw([-1, 0], HIDDEN),
        "down": draw([-1, 0, 0, 0, 0, 1], HIDDEN, WIDTH),
    }
    cast = lambda w: w.astype(ml_dtypes.bfloat16).astype(dtype)
    return jax.tree.map(cast, (params, draw([-1, 0, 1], ROWS, WIDTH)))


def by_hand(params, x):
    """The loss, gradients of parameters and rows, and what is dropped, in float64."""
    wide = lambda a: np.asarray(a, np.float64)
    up, bias, down, x = map(wide, (params["up"], params["bias"], params["down"], x))
    before = x @ up + bias
    squares, kept = np.maximum(before, 0) ** 2, best_masks(np.maximum(before, 0))
    h = np.where(kept, squares, 0)
    back = np.where(kept, SIGNS @ down.T, 0) * 2 * np.maximum(before, 0)
    gradients = {"up": x.T @ back, "bias": back.sum(0), "down": h.T @ SIGNS}
    return np.sum(h @ down * SIGNS), (gradients, back @ up.T), squares, kept


def assert_exact(got, exact, dtype):
    """Checks values that are the exact ones, rounded once to a dtype."""
    rounded = lambda a: np.asarray(a, np.float32).astype(dtype).astype(np.float32)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a, np.float32), b),
        got,
        jax.tree.map(rounded, exact),
    )


@pytest.mark.sweep(keep=["bfloat16-xla", "float16-None"])
@pytest.mark.parametrize("implementation", [None, "xla"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_whole_numbers_are_exact(dtype, implementation):
    params, x = whole(dtype)
    value, gradients, squares, kept = by_hand(params, x)
    assert (squares * ~kept).sum() > 0  # something is dropped
    fast = js.accelerate(loss, None, activations=True, implementation=implementation)
    step = jax.value_and_grad(fast, argnums=(0, 1))
    got = jax.jit(step)(params, x)
    assert float(got[0]) == value
    assert_exact(got[1], gradients, dtype)
    # The product with the squares, and the gradients of both weights and of the rows.
    sparse = 4 if implementation else 0
    assert len(calls(step, params, x, name="decompress")) == sparse


def test_with_sparse_weights_all_six_products_are_sparse():
    params, x = whole()
    rules = [js.Rule("bias", None), js.Rule(".*", BOTH, axis=0)]
    plan = js.plan_sparsity(params, rules)
    params = js.mask_params(params, js.create_masks(params, plan))
    value, gradients, *_ = by_hand(params, x)
    fast = js.accelerate(loss, plan, activations=True, implementation="xla")
    step = jax.value_and_grad(fast, argnums=(0, 1))
    got = jax.jit(step)(params, x)
    assert float(got[0]) == value
    assert_exact(got[1], gradients, "bfloat16")
    assert len(calls(step, params, x, name="decompress")) == 6


@pytest.mark.usefixtures("available")
@pytest.mark.parametrize("weights", [False, True])
def test_the_way_of_the_kernels(weights):
    params, x = whole()
    rules = [js.Rule("bias", None), js.Rule(".*", BOTH, axis=0)]
    plan = js.plan_sparsity(params, rules) if weights else None
    if plan is not None:
        params = js.mask_params(params, js.create_masks(params, plan))
    fast = js.accelerate(loss, plan, activations=True)
    value, gradients, *_ = by_hand(params, x)
    step = jax.value_and_grad(fast, argnums=(0, 1))
    got = jax.jit(step)(params, x)
    assert float(got[0]) == value
    assert_exact(got[1], gradients, "bfloat16")
    multiplied = calls(step, params, x, name="cuda_matmuls")
    compressed = calls(step, params, x, name="_best_by_kernel")
    assert (len(multiplied), len(compressed)) == (6 if weights else 4, 1)


@pytest.mark.sweep
def test_random_gradients_are_within_rounding():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    params = {"up": draw(16, 48) / 4, "bias": draw(48) - 1, "down": draw(48, 16) / 4}
    params, x = jax.tree.map(
        lambda w: w.astype(ml_dtypes.bfloat16), (params, draw(32, 16))
    )
    # What is kept is decided as in bfloat16, but for nearly equal masks.
    fast = js.accelerate(loss, None, activations=True, implementation="xla")
    got = jax.jit(jax.grad(fast))(params, x)
    _, (wanted, _), *_ = by_hand(params, x)
    for name, exact in wanted.items():
        error = np.linalg.norm(np.asarray(got[name], np.float64) - exact)
        assert error <= 0.02 * np.linalg.norm(exact), name


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


def test_batches_under_vmap():
    params, x = whole()
    fast = js.accelerate(loss, None, activations=True, implementation="xla")
    batch = jnp.stack([x, -x])
    got = jax.jit(jax.vmap(jax.grad(fast, argnums=(0, 1)), (None, 0)))(params, batch)
    for i in range(2):
        _, exact, *_ = by_hand(params, np.asarray(batch[i]))
        assert_exact(jax.tree.map(lambda g, i=i: g[i], got), exact, "bfloat16")


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
        model = nnx.Sequential(
            linear(WIDTH, HIDDEN), lambda h: nnx.relu(h) ** 2, linear(HIDDEN, WIDTH)
        )
        model.layers[0].kernel[...] = params["up"].astype(np.float32)
        model.layers[0].bias[...] = params["bias"].astype(np.float32)
        model.layers[2].kernel[...] = params["down"].astype(np.float32)
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


def test_other_uses_keep_their_gradients():
    params, x = whole()

    def fn(params, x):
        h = x @ params["up"] + params["bias"]
        y = (jax.nn.relu(h) ** 2 @ params["down"]).astype(jnp.float32)
        return jnp.sum(y * SIGNS) + jnp.sum(h.astype(jnp.float32))

    fast = js.accelerate(fn, None, activations=True, implementation="xla")
    step = jax.grad(fast, argnums=(0, 1))
    got = jax.jit(step)(params, x)
    _, (exact, by_x), *_ = by_hand(params, x)
    wide = lambda a: np.asarray(a, np.float64)
    ones = np.ones((ROWS, HIDDEN))
    exact["up"] += wide(x).T @ ones
    exact["bias"] += ROWS
    assert_exact(got, (exact, by_x + ones @ wide(params["up"]).T), "bfloat16")
    # The gradient of `h` has no zeros.
    assert len(calls(step, params, x, name="decompress")) == 2


@pytest.mark.sweep
def test_second_derivatives():
    params, x = whole()
    _, _, _, kept = by_hand(params, x)

    def masked(params, x):
        square = lambda h: jnp.where(kept, jax.nn.relu(h) ** 2, 0)
        return loss(params, x, square=square)

    fast = js.accelerate(loss, None, activations=True, implementation="xla")
    # The gradient of a sum of gradients is linear in the weights, so it is exact.
    total = lambda fn: (
        lambda x: sum(
            jnp.sum(g.astype(jnp.float32))
            for g in jax.tree.leaves(jax.grad(fn)(params, x))
        )
    )
    np.testing.assert_array_equal(
        jax.jit(jax.grad(total(fast)))(x), jax.jit(jax.grad(total(masked)))(x)
    )


def test_a_function_that_computes_gradients_is_refused():
    params, x = whole()
    for fn in (jax.grad(loss), jax.grad(jax.checkpoint(loss))):
        fast = js.accelerate(fn, None, activations=True)
        with pytest.raises(
            ValueError, match="give the function that is differentiated"
        ):
            fast(params, x)


def test_inside_a_gradient_that_is_accelerated():
    params, x = whole()
    rules = [js.Rule("bias", None), js.Rule(".*", BOTH, axis=0)]
    plan = js.plan_sparsity(params, rules)
    params = js.mask_params(params, js.create_masks(params, plan))
    inner = js.accelerate(loss, None, activations=True, implementation="xla")
    fast = js.accelerate(jax.grad(inner), plan, implementation="xla")
    _, (exact, _), *_ = by_hand(params, x)
    assert_exact(jax.jit(fast)(params, x), exact, "bfloat16")


def test_neither_a_plan_nor_activations():
    with pytest.raises(ValueError, match="nothing to accelerate"):
        js.accelerate(loss, None)


def test_what_is_dropped_is_counted():
    params, x = whole()
    _, _, squares, kept = by_hand(params, x)
    shares = jax.jit(partial(js.dropped_activations, loss))(params, x)
    assert list(shares) == ["down"]
    _assert_shares(shares["down"], squares, kept)


def test_layers_of_a_scan_are_counted_together():
    layers = [whole(seed=seed)[0] for seed in range(3)]
    x = whole()[1]
    clip = lambda y: jnp.clip(y, -1, 1)

    def fn(params, x):
        step = lambda x, layer: (clip(block(layer, x)), None)
        return lax.scan(step, x, params)[0]

    stacked = jax.tree.map(lambda *w: np.stack(w), *layers)
    shares = js.dropped_activations(fn, stacked, x)
    squares, kept = [], []
    for layer in layers:
        _, _, of_layer, mask = by_hand(layer, x)
        squares.append(of_layer)
        kept.append(mask)
        y = np.where(mask, of_layer, 0) @ np.asarray(layer["down"], np.float64)
        x = np.clip(y, -1, 1)
    _assert_shares(shares["down"], np.stack(squares), np.stack(kept))


def _assert_shares(shares, squares, kept):
    positive = squares > 0
    dropped = positive & ~kept
    assert dropped.any()
    exact = [positive.mean(), dropped.sum() / positive.sum()]
    exact.append(squares[dropped].sum() / squares.sum())
    np.testing.assert_allclose(shares, exact, rtol=2e-7)
