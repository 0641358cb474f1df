"""Stages that are calibrated on renewed batch statistics, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxsparse as js
from tests import reference


_RANDOM = np.random.default_rng(0)
X = (_RANDOM.normal(size=(96, 16)) * _RANDOM.uniform(0.1, 3, 16)).astype(np.float32)
RULES = [js.Rule(".*kernel", "2:4", axis=0, sizes=None)]


class Network(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(16, use_bias=False, name="first")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return nn.Dense(8, use_bias=False, name="second")(nn.relu(x))


def recalibrate(variables):
    def update(stats, x):
        variables_ = {**variables, "batch_stats": stats}
        out = Network().apply(variables_, x, train=True, mutable=["batch_stats"])
        return out[1]["batch_stats"]

    stats = js.recalibrate_batch_stats(update, variables["batch_stats"], [X])
    return {**variables, "batch_stats": stats}


@pytest.mark.sweep
def test_the_next_stage_reads_what_renewed_statistics_give():
    variables = Network().init(jax.random.key(0), X)
    # As a network that was trained on other images, so that much depends on them.
    stale = {"norm": {"mean": jnp.arange(16.0) - 8, "var": jnp.full(16, 9.0)}}
    result = js.prune_sequentially(
        Network().apply,
        {**variables, "batch_stats": stale},
        [X],
        js.WandaSearcher(RULES),
        boundaries=["params/first/.*", "params/second/.*"],
        recalibrate=recalibrate,
    )

    first, second = (
        np.float64(variables["params"][name]["kernel"]) for name in ("first", "second")
    )

    def wanda(kernel, x):
        scores = np.abs(kernel) * np.sqrt((x**2).mean(0))[:, None]
        return np.where(reference.top_n_mask(scores, 2, 4, 0), kernel, 0)

    first = wanda(first, np.float64(X))
    y = X @ first
    hidden = np.maximum((y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5), 0)
    second = wanda(second, hidden)
    params, stats = result.params["params"], result.params["batch_stats"]["norm"]
    np.testing.assert_allclose(params["first"]["kernel"], first, rtol=1e-6)
    np.testing.assert_allclose(params["second"]["kernel"], second, rtol=1e-6)
    np.testing.assert_allclose(stats["mean"], y.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(stats["var"], y.var(0), rtol=1e-4)


def test_a_tree_with_other_leaves_is_refused():
    variables = Network().init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="return all parameters, each of its shape"):
        js.prune_sequentially(
            Network().apply,
            variables,
            [X],
            js.MagnitudeSearcher(RULES),
            boundaries=[".*"],
            recalibrate=lambda variables: variables["batch_stats"],
        )
