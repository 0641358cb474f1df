"""Statistics of layer inputs by NumPy in float64, and a model to collect them of."""

import flax.linen as nn
import numpy as np

import jaxsparse as js


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


def collect(fn, params, *batches, pattern="2:4", **options):
    """Collects the statistics of all leaves that `fn` contracts, of any size."""
    first = batches[0] if isinstance(batches[0], tuple) else batches[:1]
    rules = [js.Rule(".*", pattern, sizes=None)]
    plan = js.plan_sparsity(params, rules, fn=fn, args=first, dense_head=False)
    return js.collect_statistics(fn, params, list(batches), plan=plan, **options)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="b")(nn.relu(nn.Dense(8, name="a")(x)))
