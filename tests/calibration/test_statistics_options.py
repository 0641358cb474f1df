"""Options of `collect_statistics`: weights, memory, progress; dtypes and programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxsparse as js
from tests.calibration.statistics_oracle import MLP, agree, collect, normal


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("padding", [0.0, np.nan])
def test_padding_is_left_out(merged, padding):
    x, weight = normal(2, 5, 8), normal(8, 4, seed=1)
    lengths = np.array([5, 2])
    real = np.arange(5) < lengths[:, None]
    padded = np.where(real[..., None], x, padding)

    def fn(params, x, _):
        return (x.reshape(-1, 8) if merged else x) @ params["w"]

    weights = lambda _, lengths: jnp.arange(5) < lengths[:, None]
    statistics = collect(fn, {"w": weight}, (padded, lengths), weights=weights)["w"]
    agree(statistics, x[real])


def test_weights_that_are_numbers():
    x, weight = normal(4, 8), normal(8, 4, seed=1)
    count = np.array([1, 3, 0, 2], np.float32)
    fn = lambda params, x: x @ params["w"]
    statistics = collect(fn, {"w": weight}, x, weights=lambda _: jnp.asarray(count))[
        "w"
    ]
    agree(statistics, np.repeat(x, count.astype(int), axis=0))


def test_bfloat16_inputs_are_summed_in_float32():
    x, weight = (
        jnp.asarray(normal(4000, 8), jnp.bfloat16),
        jnp.ones((8, 4), jnp.bfloat16),
    )
    statistics = collect(lambda p, x: x @ p["w"], {"w": weight}, x)["w"]
    agree(statistics, np.asarray(x, np.float32))


@pytest.mark.sweep
def test_little_memory_takes_several_passes():
    model, x = MLP(), normal(9, 16)
    params = model.init(jax.random.key(0), x)["params"]
    fn = lambda params, x: model.apply({"params": params}, x)
    at_once = collect(fn, params, x[:4], x[4:])
    in_turns = collect(fn, params, x[:4], x[4:], memory_limit=1100)  # 16 * 16 * 4 bytes
    jax.tree.map(np.testing.assert_array_equal, in_turns, at_once)
    rules = [js.Rule(".*kernel", "2:4", axis=0, sizes=None)]
    with pytest.raises(ValueError, match=r"needs 2 passes .* give a list"):
        js.collect_statistics(fn, params, iter([x]), plan=rules, memory_limit=1100)


def test_a_progress_bar_counts_the_batches_of_each_pass(capsys):
    params, batches = {"w": normal(16, 8)}, [normal(3, 16)] * 4
    plan = [js.Rule("w", "2:4", axis=0)]
    fn = lambda params, x: x @ params["w"]
    js.collect_statistics(fn, params, batches, plan=plan, progress=True)
    printed = capsys.readouterr().err
    assert "pass 1 of 1: 100%" in printed
    assert "4/4" in printed


def test_one_program_for_each_shape():
    traced = []

    def fn(params, x):
        traced.append(x.shape)
        return x @ params["w"]

    params = {"w": normal(16, 8)}
    plan = js.plan_sparsity(params, [js.Rule("w", "2:4", axis=0)])
    batches = [normal(3, 16), normal(5, 16), normal(3, 16), normal(5, 16)]
    js.collect_statistics(fn, params, batches, plan=plan)
    assert traced == [(3, 16), (5, 16)]


def test_under_strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        x, weight = jnp.ones((2, 8), jnp.bfloat16), jnp.ones((3, 8, 8), jnp.bfloat16)
        fn = lambda p, x: lax.scan(lambda x, w: (x @ w, None), x, p["w"])[0]
        statistics = collect(fn, {"w": weight}, x, weights=lambda _: jnp.ones(2))["w"]
    np.testing.assert_array_equal(statistics.mean_square[:, 0], [1, 64, 4096])
