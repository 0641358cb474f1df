"""Alike layers share one compiled program, and a second call compiles nothing."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from tests.test_compilation import programs as programs


RULES = [js.Rule(".*(up|down)|l.*", "2:4", axis=0, sizes=None), js.Rule(".*", None)]
BATCHES = [
    np.random.default_rng(i).normal(size=(48, 16)).astype(np.float32) for i in range(3)
]


def blocks(count, *, commit=False):
    """A network of alike residual blocks, and its parameters."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32) / 4
    params = {
        f"block{i:02}": {"up": draw(16, 32), "down": draw(32, 16), "gain": draw(16)}
        for i in range(count)
    }
    put = lambda x: jax.device_put(x, jax.devices()[0]) if commit else jnp.asarray(x)

    def fn(params, x):
        for block in params.values():
            x = x + jax.nn.silu(x * block["gain"] @ block["up"]) @ block["down"]
        return jnp.mean(x**2)

    return fn, jax.tree.map(put, params)


def compiled(programs, run):
    """The number of programs that `run` compiles."""
    before = len(programs)
    jax.block_until_ready(jax.tree.leaves(run()))
    return len(programs) - before


@pytest.mark.sweep(full=["mean_square"])
@pytest.mark.parametrize("statistic", ["mean_square", "second_moment"])
def test_more_alike_blocks_take_no_more_programs(programs, statistic):
    counts = []
    for count in (8, 11):
        fn, params = blocks(count)
        collect = lambda fn=fn, params=params: js.collect_statistics(
            fn, params, BATCHES, plan=RULES, statistic=statistic
        )
        jax.clear_caches()
        counts.append(compiled(programs, collect))
        assert compiled(programs, collect) == 0
    assert counts[0] == counts[1]


@pytest.mark.sweep(full=["400"])
@pytest.mark.parametrize("count", [50, 400])
def test_many_leaves_are_compiled_once_whatever_the_function(programs, count):
    rng = np.random.default_rng(0)
    leaves = rng.normal(size=(count, 16, 16)).astype(np.float32) / 4
    params = {f"l{i:03}": jnp.asarray(leaf) for i, leaf in enumerate(leaves)}

    def collect():
        def fn(params, x):  # another function in every call
            for leaf in params.values():
                x = jnp.tanh(x @ leaf)
            return x

        return js.collect_statistics(fn, params, BATCHES, plan=RULES)

    kept = []
    assert compiled(programs, lambda: kept.append(collect())) < 12
    assert compiled(programs, lambda: kept.append(collect())) == 0
    x, moments = BATCHES[0], [np.zeros((16, 16)) for _ in leaves]
    for x in BATCHES:
        x = x.astype(np.float64)
        for moment, leaf in zip(moments, leaves, strict=True):
            moment += x.T @ x / 144
            x = np.tanh(x @ leaf)
    for i in (0, 1, 2, count // 2, count - 1):
        for statistics in kept:
            found = statistics[f"l{i:03}"].second_moment[0]
            np.testing.assert_allclose(found, moments[i], atol=1e-5)


@pytest.mark.sweep(full=["True"])
@pytest.mark.parametrize("commit", [False, True])
@pytest.mark.parametrize("kind", [js.WandaSearcher, js.SparseGPTSearcher])
def test_pruning_in_order_compiles_each_kind_of_stage_once(programs, kind, commit):
    counts = []
    for count in (3, 5):
        fn, params = blocks(count, commit=commit)
        boundaries = [f"block{i:02}/.*" for i in range(count)]
        prune = lambda fn=fn, params=params, boundaries=boundaries: (
            js.prune_sequentially(
                fn, params, BATCHES, kind(RULES), boundaries=boundaries
            )[:2]
        )
        jax.clear_caches()
        counts.append(compiled(programs, prune))
        assert compiled(programs, prune) == 0
    assert counts[0] == counts[1]


def test_a_program_keeps_neither_parameters_nor_what_a_function_captured():
    def collect():
        fn, params = blocks(2)
        factor = jnp.full(16, 3.0)
        scaled = lambda params, x: fn(params, x * factor)
        statistics = js.collect_statistics(scaled, params, BATCHES, plan=RULES)
        expected = 9 * np.mean(np.square(np.concatenate(BATCHES)), 0)
        gain = np.square(params["block00"]["gain"])
        found = statistics["block00/up"].mean_square[0]
        np.testing.assert_allclose(found, expected * gain, rtol=1e-5)
        return [weakref.ref(factor), weakref.ref(params["block00"]["up"])]

    alive = collect()
    gc.collect()
    assert [ref() for ref in alive] == [None, None]
