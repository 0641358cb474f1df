"""Low-rank compensation against singular values in float64."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse._recovery.compensation import best_factors
from tests.recovery.layers import LAYERS, RULES, draw, forward, plan_of, product


def root_of(moment):
    values, vectors = np.linalg.eigh(moment)
    return vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T


def best_change(gap, moment, rank):
    """The best product of a rank, for a second moment that has an inverse."""
    root = root_of(moment)
    left, values, right = np.linalg.svd(root @ gap, full_matrices=False)
    values[rank:] = 0
    return np.linalg.inv(root) @ (left * values @ right)


def lost(gap, moment):
    return np.trace(gap.T @ moment @ gap)


@pytest.fixture(scope="module")
def compensated():
    params, x = draw()
    plan = plan_of(params, x)
    statistics = js.collect_statistics(forward, params, [x], plan=plan)
    result = js.MagnitudeSearcher(plan).search(params)
    args = params, result, statistics
    return *args, js.compensate_low_rank(*args, rank=3, shrinkage=0.25)


@pytest.mark.sweep(keep=["kernel"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_change_is_the_best_one_of_its_rank(compensated, name):
    params, result, statistics, (factors, report) = compensated
    columns = statistics[name].columns
    dense, pruned, change = (
        np.asarray(columns.to_matrices(jnp.asarray(x)), np.float64)
        for x in (params[name], result.params[name], product(name, factors[name]))
    )
    moments = np.asarray(statistics[name].second_moment, np.float64)
    for w, v, ab, h in zip(dense, pruned, change, moments, strict=True):
        shrunk = 0.75 * h + 0.25 * np.diag(np.diag(h))
        expected = best_change(w - v, shrunk, 3)
        np.testing.assert_allclose(ab, expected, rtol=1e-3, atol=1e-4)
    (leaf,) = [leaf for leaf in report if leaf.path == name]
    outputs = sum(map(lost, dense, moments))
    before = sum(map(lost, dense - pruned, moments))
    after = sum(map(lost, dense - pruned - change, moments))
    np.testing.assert_allclose(leaf.error, np.sqrt(before / outputs), rtol=1e-4)
    np.testing.assert_allclose(
        leaf.compensated_error, np.sqrt(after / outputs), rtol=1e-3
    )


@pytest.mark.sweep
def test_the_shrinkage_of_least_held_out_error_is_taken():
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(24, 16)), np.float32)}
    batches = [rng.normal(size=(6, 24)).astype(np.float32) for _ in range(8)]
    fn = lambda params, x: x @ params["w"]
    rules = [js.Rule(".*", "2:4", axis=0, sizes=None)]
    options = {"plan": rules, "held_out": 0.25}
    statistics = js.collect_statistics(fn, params, batches, **options)
    result = js.MagnitudeSearcher(rules).search(params)
    compensate = partial(js.compensate_low_rank, params, result, statistics, rank=4)
    held_out = np.concatenate(batches[3::4]).astype(float)
    gap = np.asarray(params["w"] - result.params["w"], float)

    def error(factors):
        product = np.asarray(factors["w"].a, float) @ np.asarray(factors["w"].b, float)
        return np.linalg.norm(held_out @ (gap - product))

    grid = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
    errors = [error(compensate(shrinkage=value).factors) for value in grid]
    assert np.ptp(errors) > 0
    auto = error(compensate(shrinkage="auto").factors)
    np.testing.assert_allclose(auto, min(errors), rtol=1e-6)


def test_the_report_has_the_bytes(compensated):
    *_, (factors, report) = compensated
    assert factors["bias"] is None
    (leaf,) = [leaf for leaf in report if leaf.path == "kernel"]
    assert leaf.rank == 3
    assert leaf.factor_bytes == 4 * (16 * 3 + 3 * 8)
    assert leaf.stored_bytes == 4 * 64 + 128 // 8  # values; four bits a group of four
    assert leaf.dense_bytes == 4 * 128
    assert "560 of 512 B" in str(report)


def test_the_sum_of_two_products_is_the_product_of_the_sum(compensated):
    params, result, _, (factors, _) = compensated
    x = jax.random.normal(jax.random.key(3), (5, 16))
    f, sparse = factors["kernel"], result.params["kernel"]
    full = js.apply_adapters(result.params, factors, None)["kernel"]
    np.testing.assert_allclose(x @ sparse + (x @ f.a) @ f.b, x @ full, atol=1e-4)
    assert full.dtype == params["kernel"].dtype


@pytest.mark.sweep(keep=["-0"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tokens", [40, 5])
def test_no_change_of_the_rank_is_better(tokens, seed):
    """Also where there are fewer tokens than inputs, and dead inputs."""
    rng = np.random.default_rng(seed)
    x, gap = rng.normal(size=(tokens, 12)), rng.normal(size=(12, 7))
    x[:, 3] = 0
    moment = x.T @ x / tokens
    singular = np.linalg.svd(root_of(moment) @ gap, compute_uv=False)
    last = np.inf
    for rank in range(1, 8):
        a, b = jax.jit(best_factors, static_argnames="rank")(
            jnp.asarray(gap, jnp.float32), jnp.asarray(moment, jnp.float32), rank=rank
        )
        error = lost(gap - np.asarray(a, float) @ np.asarray(b, float), moment)
        bound = (singular[rank:] ** 2).sum()  # Eckart and Young
        np.testing.assert_allclose(error, bound, rtol=1e-3, atol=1e-4)
        assert error <= last + 1e-4
        last = error
        assert np.isfinite(a).all()


@pytest.mark.sweep
def test_leaves_without_factors_say_why():
    conv = nn.Conv(8, (1, 1), feature_group_count=2, name="grouped")
    x = jax.random.normal(jax.random.key(0), (4, 3, 3, 8))
    variables = conv.init(jax.random.key(1), x)["params"]
    params = {"conv": variables, "scaled": jnp.ones((8, 8)), "scale": jnp.ones(8)}

    def fn(params, x):
        y = conv.apply({"params": params["conv"]}, x)
        return y, x @ (params["scaled"] * params["scale"][:, None])

    params["scaled"] = jax.random.normal(jax.random.key(2), (8, 8))
    params["scale"] = jnp.arange(1.0, 9.0)
    plan = js.plan_sparsity(params, RULES, fn=fn, args=(x,), dense_head=False)
    statistics = js.collect_statistics(fn, params, [x], plan=plan)
    result = js.MagnitudeSearcher(plan).search(params)
    factors, report = js.compensate_low_rank(params, result, statistics, rank=2)
    assert jax.tree.leaves(factors) == []
    reasons = {leaf.path: leaf.reason for leaf in report}
    assert reasons == {
        "conv/kernel": "feature groups",
        "scaled": "scaled before its product",
    }
    assert "no factors: feature groups" in str(report)
    assert all(leaf.error == leaf.compensated_error for leaf in report)


def test_what_cannot_be_compensated_is_refused(compensated):
    params, result, statistics, _ = compensated
    compensate = js.compensate_low_rank
    with pytest.raises(ValueError, match="at least 1, got 0"):
        compensate(params, result, statistics, rank=0)
    with pytest.raises(ValueError, match="there are no statistics of leaf"):
        compensate(params, result, {}, rank=1)
    broken = {**params, "kernel": params["kernel"].at[0, 0].set(jnp.nan)}
    with pytest.raises(ValueError, match=r"'kernel' of shape .* not finite"):
        compensate(broken, result, statistics, rank=1)
