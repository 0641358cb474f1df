"""Statistics of layer inputs by NumPy in float64."""

import numpy as np


def agree(statistics, *inputs, tokens=None):
    """Checks a leaf's statistics against the inputs of each problem, (token, input)."""
    inputs = [np.asarray(x, np.float64).reshape(-1, x.shape[-1]) for x in inputs]
    moments = np.stack([x.T @ x / len(x) for x in inputs])
    scale = moments.max()
    np.testing.assert_allclose(statistics.second_moment, moments, atol=3e-6 * scale)
    squares = np.stack([(x**2).mean(0) for x in inputs])
    np.testing.assert_allclose(statistics.mean_square, squares, atol=3e-6 * scale)
    tokens = [len(x) for x in inputs] if tokens is None else tokens
    np.testing.assert_allclose(statistics.tokens, tokens, rtol=1e-6)


def normal(*sizes, seed=0):
    return np.random.default_rng(seed).normal(size=sizes).astype(np.float32)
