"""Squared ReLUs by the CUDA kernels: exact gradients of the masked function."""

from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse._compressed.compress_both import compress_squared_relu
from jaxsparse._compressed.squared_relu import squared_relu
from tests.compressed.forms_oracle import best_masks, forms
from tests.compressed.test_accelerate_cuda import kernels, signs
from tests.gpu import needs_hopper


pytestmark = pytest.mark.gpu
RULES = [
    js.Rule("bias", None),
    js.Rule(".*", js.NM(2, 4, transposable=True), axis=0),
]


def loss(params, x):
    up, bias, down = (params[name].astype(x.dtype) for name in ("up", "bias", "down"))
    y = jax.nn.relu(x @ up + bias) ** 2 @ down
    c = signs(y.shape).astype(np.float32)
    return jnp.sum(y.astype(jnp.float32) * c)


def whole(rows, width, hidden, dtype):
    rng = np.random.default_rng(0)
    values = np.array([-1, *[0] * (width // 16), 0, 0, 0, 0, 1], np.float32)
    few = lambda *shape: rng.choice(values, shape)
    params = {
        "up": few(width, hidden),
        "bias": rng.choice([-1, 0], hidden).astype(np.float32),
        "down": few(hidden, width),
    }
    return params, few(rows, width).astype(dtype)


def by_hand(params, x):
    """Gradients of weights and rows in float64."""
    wide = lambda a: np.asarray(a, np.float64)
    up, bias, down, x = map(wide, (params["up"], params["bias"], params["down"], x))
    relu = np.maximum(x @ up + bias, 0)
    kept = best_masks(relu)
    h = np.where(kept, relu**2, 0)
    assert (relu * ~kept).any()
    c = signs((len(x), up.shape[0]))
    back = np.where(kept, c @ down.T, 0) * 2 * relu
    assert max(abs(relu**2).max(), abs(back).max()) <= 256
    return {"up": x.T @ back, "down": h.T @ c, "x": back @ up.T}


@needs_hopper
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize(
    ("sizes", "dtype", "implementation"),
    [
        ((32, 64, 128), "bfloat16", "cuda"),
        ((272, 144, 336), "float16", None),
        ((512, 256, 1024), "bfloat16", None),
    ],
)
def test_whole_numbers_are_exact(sizes, dtype, implementation, weights):
    params, x = whole(*sizes, dtype)
    plan = js.plan_sparsity(params, RULES) if weights else None
    if plan is not None:
        params = js.mask_params(params, js.create_masks(params, plan))
    fast = js.accelerate(loss, plan, activations=True, implementation=implementation)
    step = jax.grad(fast, argnums=(0, 1))
    by_params, by_x = jax.jit(step)(params, x)
    for name, exact in by_hand(params, x).items():
        rounded = exact.astype(np.float32).astype(dtype).astype(np.float32)
        result = by_x if name == "x" else by_params[name]
        np.testing.assert_array_equal(np.asarray(result, np.float32), rounded, name)
    # Nobody asks for the result.
    assert kernels(step, params, x) == (5 if weights else 3)


@needs_hopper
def test_three_axes_a_scan_and_checkpoint():
    params, x = whole(64, 64, 128, "bfloat16")
    stacked = jax.tree.map(lambda w: np.stack([w, w[::-1]]), params)

    def fn(params, x):
        def layer(h, p):
            up, bias, down = (p[n].astype(h.dtype) for n in ("up", "bias", "down"))
            y = jax.nn.relu(h @ up + bias) ** 2 @ down
            return jnp.clip(y, -1, 1), None

        y = jax.lax.scan(jax.checkpoint(layer), x, params)[0].reshape(64, 64)
        return jnp.sum(y.astype(jnp.float32) * signs(y.shape).astype(np.float32))

    x = x.reshape(2, 32, 64).astype(ml_dtypes.bfloat16)
    results = [
        jax.jit(jax.grad(js.accelerate(fn, None, activations=True, implementation=i)))(
            stacked, x
        )
        for i in ("cuda", "xla")
    ]
    jax.tree.map(np.testing.assert_array_equal, *results)


@needs_hopper
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("axes", [(-2,), (-1,), (-2, -1)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_squared_relus(dtype, axes):
    rng = np.random.default_rng(0)
    compress = partial(compress_squared_relu, axes=axes, kept=True)
    for shape in ((8, 8), (72, 136), (256, 256)):
        h = (rng.normal(size=shape) - 0.5).astype(dtype)
        h.flat[3:6], h[4, :3] = (0, -0.0, np.inf), np.nan
        relu = np.maximum(h.astype(np.float32), 0)  # NaN stays NaN
        squares, mask = (relu * relu).astype(dtype), best_masks(relu)
        best = jax.jit(compress)(h)
        np.testing.assert_array_equal(
            best.mask, np.packbits(mask, -2, bitorder="little")
        )
        results = [
            best.kept,
            *(a for form in best.forms for a in (form.values, form.indices)),
        ]
        kept = np.where(mask, squares, np.zeros((), dtype))
        for result, exact in zip(
            results, [kept, *forms(squares, mask, dtype, axes)], strict=True
        ):
            wide = (np.asarray(a).astype(np.float32) for a in (result, exact))
            np.testing.assert_array_equal(*wide)


@needs_hopper
def test_the_gradient_of_squares_is_exact():
    rng = np.random.default_rng(0)
    h, g = (rng.normal(size=(512, 336)).astype(ml_dtypes.bfloat16) for _ in range(2))
    relu = np.maximum(h.astype(np.float32), 0)

    @jax.jit
    def gradient(h, g):
        best = compress_squared_relu(h, (-2,), kept=True)
        return jax.vjp(lambda h: squared_relu(h, best.kept, best.forms[0]), h)[1](g)[0]

    kept = np.where(best_masks(relu), relu, 0)
    wanted = (2 * kept * g.astype(np.float32)).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(*map(_wide, (gradient(h, g), wanted)))


def _wide(x):
    return np.asarray(x).astype(np.float32)
