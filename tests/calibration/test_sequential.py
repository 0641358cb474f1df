"""Pruning stage by stage equals collecting again from the model pruned so far."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxsparse as js


def normal(*sizes, seed=0):
    return np.random.default_rng(seed).normal(size=sizes).astype(np.float32)


PARAMS = {name: normal(16, 16, seed=i) for i, name in enumerate("abcd")}
BATCHES = [normal(n, 16, seed=10 + n) for n in (40, 50, 40)]
RULES = [js.Rule(".*", "2:4", axis=0)]


def network(params, x):
    """Weights are cast before anything is pruned, and `c` meets inputs of two kinds."""
    cast = jax.tree.map(lambda w: w.astype(jnp.float32) * 0.5, params)
    first = jnp.tanh(x @ cast["a"])
    second = jnp.tanh(jax.jit(lambda x: x @ cast["b"])(first))
    third = jax.nn.relu(second @ cast["c"]) + first @ cast["c"]
    return jnp.sum((third + x) @ cast["d"])


@pytest.mark.sweep
@pytest.mark.parametrize("kind", [js.SparseGPTSearcher, js.WandaSearcher])
def test_each_stage_sees_what_the_pruned_ones_before_it_give(kind):
    searcher = kind(RULES)
    result = js.prune_sequentially(
        network, PARAMS, BATCHES, searcher, boundaries=["[ab]", "c", "d"]
    )
    expected, masks = PARAMS, {}
    for stage in ("ab", "c", "d"):
        rules = [js.Rule(f"[{stage}]", "2:4", axis=0)]
        statistics = js.collect_statistics(network, expected, BATCHES, plan=rules)
        expected, new, _ = kind(rules).search(expected, statistics)
        masks |= {name: new[name] for name in stage}
    for name in PARAMS:
        np.testing.assert_array_equal(result.masks[name], masks[name])
        np.testing.assert_allclose(result.params[name], expected[name], atol=1e-4)
    js.check_sparsity(result.params, result.plan)
    assert result.plan.sparse == js.plan_sparsity(PARAMS, RULES).sparse


@pytest.mark.sweep
@pytest.mark.parametrize("kind", [js.SparseGPTSearcher, js.ADMMSearcher])
def test_shrinkage_is_chosen_by_held_out_batches_of_the_pruned_stages(kind):
    searcher = kind(RULES, shrinkage="auto")
    result = js.prune_sequentially(
        network, PARAMS, BATCHES, searcher, boundaries=["[ab]", "c", "d"], held_out=0.4
    )
    expected = PARAMS
    for stage in ("ab", "c", "d"):
        rules = [js.Rule(f"[{stage}]", "2:4", axis=0)]
        statistics = js.collect_statistics(
            network, expected, BATCHES, plan=rules, held_out=0.4
        )
        expected = kind(rules, shrinkage="auto").search(expected, statistics).params
    for name in PARAMS:
        np.testing.assert_allclose(result.params[name], expected[name], atol=1e-4)


@pytest.mark.sweep
def test_padding_does_not_count_and_a_model_is_pruned_in_its_state():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(16, 16, rngs=rngs) for _ in range(3)])

        def __call__(self, x):
            for layer in self.layers:
                x = nnx.gelu(layer(x))
            return x

    graph, params = nnx.split(Net(nnx.Rngs(0)), nnx.Param)
    fn = lambda params, x, _: nnx.merge(graph, params)(x)
    x, lengths = normal(16, 6, 16), np.array([6, 6, 6, 5, 4, 3, 6, 6] * 2)
    real = np.arange(6) < lengths[:, None]
    weights = lambda _, lengths: jnp.arange(6) < lengths[:, None]
    run = lambda batch, weights: js.prune_sequentially(
        fn,
        params,
        [(batch, lengths)],
        js.SparseGPTSearcher("2:4"),
        boundaries=[f"layers/{i}/.*" for i in range(3)],
        weights=weights,
    )
    padded = run(np.where(real[..., None], x, np.nan), weights)
    rows = x[real][None]  # one row of all real tokens, without padding
    alone = run(rows, None)
    for path in range(3):
        one, other = (
            result.params["layers"][path]["kernel"][...] for result in (padded, alone)
        )
        np.testing.assert_allclose(one, other, atol=1e-4)
    masks = padded.masks["layers"][0]
    assert masks["bias"] is None or masks["bias"].get_value() is None


def test_what_cannot_be_pruned_in_order_is_refused_with_the_remedy():
    searcher = js.SparseGPTSearcher(RULES)
    run = lambda fn, params, boundaries: js.prune_sequentially(
        fn, params, BATCHES[:1], searcher, boundaries=boundaries
    )
    with pytest.raises(ValueError, match="no boundary matches leaf 'd'"):
        run(network, PARAMS, ["[abc]"])
    crossing = (
        r"'b' is contracted before the last product with leaf 'd'.* earlier stage"
    )
    with pytest.raises(ValueError, match=crossing):
        run(network, PARAMS, ["[ad]", "[bc]"])
    with pytest.raises(ValueError, match="boundary 'e' matches none of the 4 leaves"):
        run(network, PARAMS, [".*", "e"])
    named = {f"l{i}": normal(16, 16) for i in range(2)}
    chain = lambda p, x: jnp.tanh(x @ p["l0"]) @ p["l1"]
    with pytest.raises(ValueError, match=r"boundary 'l\{0,1\}' .*write 'l"):
        run(chain, named, ["l{0,1}"])  # as a table prints them
    across = [js.Rule(".*", js.Unstructured(0.5, across_leaves=True), axis=0)]
    with pytest.raises(ValueError, match="one threshold for leaves of several stages"):
        js.prune_sequentially(
            network, PARAMS, BATCHES, js.WandaSearcher(across), boundaries=[".*"]
        )
    with pytest.raises(ValueError, match="there are no batches"):
        js.prune_sequentially(network, PARAMS, [], searcher, boundaries=[".*"])
    stack = js.SparseGPTSearcher([js.Rule(".*", "2:4", axis=1)])
    scan = lambda params, x: lax.scan(lambda x, w: (x @ w, None), x, params["w"])[0]
    with pytest.raises(ValueError, match=r"'w' is contracted inside a scan.*unroll"):
        js.prune_sequentially(
            scan, {"w": normal(3, 16, 16)}, BATCHES[:1], stack, boundaries=[".*"]
        )
