"""Pruned stages are trained to give their dense outputs, and never end up worse."""

from itertools import count

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

import jaxsparse as js
from tests.calibration.test_cold_start import compiled
from tests.test_compilation import programs as programs


def normal(*sizes, seed=0):
    return np.random.default_rng(seed).normal(size=sizes).astype(np.float32)


RULES = [js.Rule(".*kernel", "2:4", axis=0, sizes=None), js.Rule(".*", None)]
PARAMS = {
    name: {"kernel": normal(8, 8, seed=i) / 3, "bias": normal(8, seed=i + 5)}
    for i, name in enumerate("ab")
}
BATCHES = [normal(20, 8, seed=i) for i in range(10, 14)]


def network(params, x):
    a, b = params["a"], params["b"]
    return jnp.tanh(x @ a["kernel"] + a["bias"]) @ b["kernel"] + b["bias"]


def prune(reconstruct, searcher=js.MagnitudeSearcher, params=PARAMS, **options):
    return js.prune_sequentially(
        network,
        params,
        options.pop("batches", BATCHES),
        searcher(RULES),
        boundaries=["a/.*", "b/.*"],
        reconstruct=reconstruct,
        **options,
    )


def best_two_of_four(kernel):
    ranks = np.argsort(np.argsort(-abs(kernel.reshape(2, 4, 8)), axis=1), axis=1)
    return (ranks < 2).reshape(8, 8)


def descend(kernel, bias, xs, forward, backward, steps, rate):
    """Gradient descent in float64 on three batches; the third of four is held out."""
    mask = best_two_of_four(kernel)
    targets = [forward(x @ kernel + bias) for x in xs]
    weights = kernel * mask, bias
    best, losses = weights, []
    order = [0, 1, 3]
    for step in range(steps + 1):
        out = forward(xs[2] @ weights[0] + weights[1])
        losses.append(((out - targets[2]) ** 2).sum() / (targets[2] ** 2).sum())
        if losses[-1] == min(losses):
            best = weights
        i = order[step % 3]
        x, target = xs[i], targets[i]
        out = forward(x @ weights[0] + weights[1])
        slope = 2 * (out - target) / (target**2).sum() * backward(out)
        new = weights[0] - rate * x.T @ slope, weights[1] - rate * slope.sum(0)
        weights = new[0] * mask, new[1]
    return *best, losses


@pytest.mark.parametrize("rate", [0.3, 6.0])  # the second one overshoots
def test_stages_are_trained_as_by_descent_in_float64(rate):
    stages = []
    how = js.Reconstruction(
        steps=7,
        optimizer=optax.sgd(rate),
        held_out=0.25,
        every=1,
        patience=9,
        report=stages.append,
    )
    result = prune(how)
    xs = [x.astype(np.float64) for x in BATCHES]
    for name, forward, backward in (
        ("a", np.tanh, lambda out: 1 - out**2),
        ("b", lambda x: x, lambda _: 1),
    ):
        dense = {k: x.astype(np.float64) for k, x in PARAMS[name].items()}
        kernel, bias, losses = descend(
            **dense, xs=xs, forward=forward, rate=rate, backward=backward, steps=7
        )
        np.testing.assert_allclose(result.params[name]["kernel"], kernel, atol=1e-5)
        np.testing.assert_allclose(result.params[name]["bias"], bias, atol=1e-5)
        trained, steps, before, after = stages["ab".index(name)]
        assert trained == (f"{name}/bias", f"{name}/kernel")
        assert steps == 7
        np.testing.assert_allclose([before, after], [losses[0], min(losses)], rtol=1e-4)
        xs = [forward(x @ kernel + bias) for x in xs]
    js.check_sparsity(result.params, result.plan)
    for name in "ab":
        mask = best_two_of_four(PARAMS[name]["kernel"])
        np.testing.assert_array_equal(result.masks[name]["kernel"], mask)
        assert not np.asarray(result.params[name]["kernel"])[~mask].any()


def error(params, x):
    """The relative error of the pruned network's outputs."""
    dense = network(PARAMS, x)
    return float(jnp.sum((network(params, x) - dense) ** 2) / jnp.sum(dense**2))


@pytest.mark.sweep
@pytest.mark.parametrize(
    "kind", [js.MagnitudeSearcher, js.WandaSearcher, js.SparseGPTSearcher]
)
def test_with_every_searcher_outputs_come_closer_on_unseen_inputs(kind):
    batches = [normal(64, 8, seed=i) for i in range(20, 28)]
    how = js.Reconstruction(steps=150, optimizer=optax.adam(1e-3))
    errors = [
        error(prune(reconstruct, kind, batches=batches).params, normal(500, 8, seed=7))
        for reconstruct in (None, how)
    ]
    assert errors[1] < 0.9 * errors[0]


@settings(deadline=None, max_examples=10)
@given(
    st.floats(-4, 2), st.integers(0, 2**16), st.sampled_from(["float32", "bfloat16"])
)
@pytest.mark.sweep
def test_no_stage_ends_above_where_it_began(log_rate, seed, dtype):
    params = jax.tree.map(
        lambda x: jnp.asarray(normal(*x.shape, seed=seed), dtype), PARAMS
    )
    stages = []
    optimizer = optax.adam(10**log_rate)
    how = js.Reconstruction(
        steps=12, optimizer=optimizer, every=3, report=stages.append
    )
    one = lambda params, x: jnp.tanh(x @ params["kernel"] + params["bias"])
    losses = []
    for reconstruct in (None, how):
        result = js.prune_sequentially(
            one,
            params["a"],
            BATCHES,
            js.MagnitudeSearcher(RULES),
            boundaries=["kernel"],
            reconstruct=reconstruct,
        )
        dense = one(params["a"], BATCHES[2]).astype(jnp.float32)
        out = one(result.params, BATCHES[2]).astype(jnp.float32)
        losses.append(float(jnp.sum((out - dense) ** 2) / jnp.sum(dense**2)))
        js.check_sparsity(result.params, result.plan)
        assert result.params["kernel"].dtype == dtype
    assert losses[1] <= losses[0] * (1 + 1e-5)
    np.testing.assert_allclose([stages[0].before, stages[0].after], losses, rtol=1e-2)


@pytest.mark.sweep
def test_a_run_that_was_interrupted_resumes_with_the_same_bits(tmp_path):
    stages, calls = [], count()

    def interrupt(stage):
        if next(calls) == 1:
            raise KeyboardInterrupt
        stages.append(stage.leaves)

    how = lambda report: js.Reconstruction(steps=9, every=2, report=report)
    expected = prune(how(None), js.SparseGPTSearcher)
    with pytest.raises(KeyboardInterrupt):
        prune(how(interrupt), js.SparseGPTSearcher, checkpoint=tmp_path / "run")
    assert [x.name for x in (tmp_path / "run").iterdir()] == ["stage_0000.npz"]
    result = prune(how(interrupt), js.SparseGPTSearcher, checkpoint=tmp_path / "run")
    assert [names[0] for names in stages] == ["a/bias", "b/bias"]  # each once
    again = prune(how(interrupt), js.SparseGPTSearcher, checkpoint=tmp_path / "run")
    assert len(stages) == 2
    for other in (result, again):
        jax.tree.map(np.testing.assert_array_equal, other[:2], expected[:2])
    with pytest.raises(ValueError, match=r"stage_0000.npz is the checkpoint of other"):
        prune(None, js.SparseGPTSearcher, checkpoint=tmp_path / "run")


@pytest.mark.parametrize("packed", [False, True])
def test_a_checkpoint_without_training_keeps_every_dtype(tmp_path, packed):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), PARAMS)
    searcher = lambda rules: js.WandaSearcher(rules, packed=packed)
    options = {"searcher": searcher, "params": params}
    first = prune(None, **options)
    saved = prune(None, **options, checkpoint=tmp_path)
    loaded = prune(None, **options, checkpoint=tmp_path)
    for other in (saved, loaded):
        dtypes = [jax.tree.map(lambda x: x.dtype, x[:2]) for x in (other, first)]
        assert dtypes[0] == dtypes[1]
        jax.tree.map(np.testing.assert_array_equal, other[:2], first[:2])


@pytest.mark.sweep
def test_only_floats_of_one_stage_that_nothing_looks_up_are_trained():
    params = {
        "table": normal(16, 8),
        "shift": np.int32(0),
        "blocks": [
            {"gain": np.ones(8, np.float32), "kernel": normal(8, 8, seed=i)}
            for i in range(2)
        ],
        "shared": np.ones(8, np.float32),
    }

    def fn(params, tokens):
        x = params["table"][tokens + params["shift"]]
        for block in params["blocks"]:
            x = x + jnp.tanh(x * block["gain"] * params["shared"]) @ block["kernel"]
        return x @ params["table"].T

    stages = []
    how = js.Reconstruction(steps=3, report=stages.append)
    tokens = np.random.default_rng(0).integers(0, 16, (4, 30))
    result = js.prune_sequentially(
        fn,
        params,
        list(tokens),
        js.WandaSearcher(RULES),
        boundaries=["blocks/0/.*", "blocks/1/.*"],
        reconstruct=how,
    )
    assert [stage.leaves for stage in stages] == [
        ("blocks/0/gain", "blocks/0/kernel"),
        ("blocks/1/gain", "blocks/1/kernel"),
    ]
    np.testing.assert_array_equal(result.params["table"], params["table"])
    np.testing.assert_array_equal(result.params["shared"], params["shared"])


@pytest.mark.sweep
def test_padding_does_not_count():
    padded = [np.concatenate([x, 100 * np.ones_like(x)]) for x in BATCHES]
    weights = lambda x: np.arange(len(x)) < 20
    how = js.Reconstruction(steps=5, optimizer=optax.sgd(0.3))
    expected = prune(how)
    result = prune(how, batches=padded, weights=weights)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5),
        result.params,
        expected.params,
    )


@pytest.mark.sweep
def test_alike_stages_are_trained_by_one_program(programs):
    counts = []
    for layers in (3, 5):
        kernels = [{"kernel": normal(8, 8, seed=i)} for i in range(layers)]

        def fn(params, x):
            for layer in params:
                x = x + jnp.tanh(x @ layer["kernel"])
            return x

        how = js.Reconstruction(steps=4, every=2)
        run = lambda kernels=kernels, fn=fn, how=how: js.prune_sequentially(
            fn,
            kernels,
            BATCHES,
            js.MagnitudeSearcher(RULES),
            boundaries=[f"{i}/.*" for i in range(len(kernels))],
            reconstruct=how,
        )[:2]
        jax.clear_caches()
        counts.append(compiled(programs, run))
        assert compiled(programs, run) == 0
    assert counts[0] == counts[1]


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        js.Reconstruction(steps=0)
    with pytest.raises(ValueError, match=r"held_out must be a fraction .* got 1\.0"):
        js.Reconstruction(held_out=1.0)
    with pytest.raises(ValueError, match="only one: give at least two"):
        prune(js.Reconstruction(), batches=BATCHES[:1])
