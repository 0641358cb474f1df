"""What 2:4 drops of activations is counted as by NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxsparse as js
from tests.compressed.squared_relus import (
    block,
    by_hand,
    loss,
    whole,
)


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
