"""A feed-forward block with a squared ReLU, by hand in float64."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

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
