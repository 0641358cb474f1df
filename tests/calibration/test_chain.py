"""Chains of stages: as `prune_sequentially`, and compiled once for equal stages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse._calibration import ChainStage, prune_chain
from tests.test_compilation import programs as programs


PLAN = js.plan_sparsity({"w": jnp.zeros((16, 16))}, [js.Rule("w", "2:4", axis=0)])


def stage(params, x):
    return x + jnp.tanh(x @ params["w"])


def draw(layers):
    """Returns weights of equal layers, and batches with correlated features."""
    keys = jax.random.split(jax.random.key(0), layers + 1)
    weights = [{"w": jax.random.normal(key, (16, 16))} for key in keys[1:]]
    mixed = jax.random.normal(keys[0], (2, 40, 16))
    return weights, [*jnp.cumsum(mixed, axis=-1)]


def chain(layers, searcher):
    """Prunes a chain of equal stages."""
    weights, batches = draw(layers)
    stages = [ChainStage(stage, PLAN, lambda i=i: weights[i]) for i in range(layers)]
    return prune_chain(stages, batches, searcher)


@pytest.mark.sweep
@pytest.mark.parametrize("make", [js.WandaSearcher, js.SparseGPTSearcher])
def test_a_chain_is_pruned_as_the_whole_function_is(make, programs):
    weights, batches = draw(3)

    def whole(params, x):
        for layer in params:
            x = stage(layer, x)
        return x

    pruned, counts = [], []
    for of_stage in chain(3, make):
        pruned.append(of_stage)
        counts.append(len(programs))
    # Equal stages are compiled once; the forward pass is, after the first of them.
    assert 0 < counts[0] < counts[1] == counts[2]

    searcher = make([js.Rule(".*", "2:4", axis=0)])
    stages = [f"{i}/.*" for i in range(3)]
    expected = js.prune_sequentially(
        whole, weights, batches, searcher, boundaries=stages
    )
    for i, of_stage in enumerate(pruned):
        np.testing.assert_array_equal(of_stage.params["w"], weights[i]["w"])
        np.testing.assert_array_equal(
            of_stage.result.masks["w"], expected.masks[i]["w"]
        )
        np.testing.assert_allclose(
            of_stage.result.params["w"], expected.params[i]["w"], atol=1e-5
        )
        assert of_stage.statistics["w"].second_moment.shape == (1, 16, 16)


def test_stages_are_loaded_one_after_the_other():
    weights, batches = draw(2)
    loaded = []
    dense = js.Plan((js.LeafPlan("w", (16, 16), reason="rule"),))

    def load(i):
        loaded.append(i)
        return weights[i]

    planned = [
        ChainStage(stage, dense if i == 0 else PLAN, lambda i=i: load(i))
        for i in range(2)
    ]
    stages = prune_chain(planned, batches, js.WandaSearcher)
    first = next(stages)
    assert (loaded, first.statistics, first.result.masks) == ([0], {}, {"w": None})
    np.testing.assert_array_equal(first.result.params["w"], weights[0]["w"])
    second = next(stages)
    assert loaded == [0, 1]
    assert ((second.result.params["w"] != 0).reshape(4, 4, 16).sum(1) == 2).all()
    assert next(stages, None) is None
