"""Allocation against trying every choice, with errors in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

import jaxsparse as js
from jaxsparse._recovery import tradeoffs
from jaxsparse._recovery.allocation import _checked
from jaxsparse._recovery.tradeoffs import least_error
from jaxsparse._trees import flatten
from tests import reference


def tried(costs, errors, budget):
    """The least total error within a budget, by trying every choice."""
    totals = [
        sum(item[i] for item, i in zip(errors, choice, strict=True))
        for choice in itertools.product(*(range(len(item)) for item in costs))
        if sum(item[i] for item, i in zip(costs, choice, strict=True)) <= budget
    ]
    return min(totals)


@st.composite
def problems(draw):
    numbers = st.integers(0, 9)
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=6))
    rows = lambda n: st.lists(numbers, min_size=n, max_size=n)
    costs = [draw(rows(n)) for n in sizes]
    errors = [[x - 2 for x in draw(rows(n))] for n in sizes]
    least = sum(map(min, costs))
    return costs, errors, least + draw(st.integers(0, 30))


@pytest.mark.sweep
@given(problems())
def test_choices_are_the_best_of_all(problem):
    costs, errors, budget = problem
    chosen = least_error(costs, errors, budget)
    total = lambda rows: sum(row[i] for row, i in zip(rows, chosen, strict=True))
    assert total(costs) <= budget
    assert total(errors) == tried(costs, errors, budget)


def test_of_many_totals_those_of_almost_one_cost_are_merged(monkeypatch):
    """The error is then close to the bound of fractions of choices."""
    monkeypatch.setattr(tradeoffs, "MAX_TOTALS", 2000)
    rng = np.random.default_rng(0)
    costs = [[1.0 * size, 0.5 * size] for size in rng.uniform(1, 3, 60)]
    errors = [[0.0, error] for error in rng.uniform(0, 1, 60)]
    budget = 0.7 * sum(dense for dense, _ in costs)
    chosen = least_error(costs, errors, budget)
    total = lambda rows: sum(row[i] for row, i in zip(rows, chosen, strict=True))
    assert total(costs) <= budget
    saved = np.array([dense - half for dense, half in costs])
    lost = np.array([error for _, error in errors])
    order = np.argsort(lost / saved)
    needed = sum(dense for dense, _ in costs) - budget
    before = np.minimum(np.cumsum(saved[order]), needed)
    parts = np.diff(np.append(0, before)) / saved[order]
    bound = (parts * lost[order]).sum()
    assert bound <= total(errors) <= 1.01 * bound


SHAPES = {"a": (16, 8), "b": (16, 24), "c": (32, 8), "d": (8, 32)}
PATTERNS = {"1:4": (1, 4), "2:4": (2, 4), "4:8": (4, 8)}


def network():
    """Leaves of unequal sizes and spreads, and inputs of unequal scales."""
    rng = np.random.default_rng(0)
    params = {
        name: jnp.asarray(rng.normal(size=shape) ** power, np.float32)
        for power, (name, shape) in zip((1, 3, 5, 1), SHAPES.items(), strict=True)
    }
    scales = np.exp(rng.normal(size=32))
    mixed = rng.normal(size=(32, 32)) * scales
    x = jnp.asarray(rng.normal(size=(200, 32)) @ mixed, np.float32)
    return params, x


def fn(params, x):
    return [x[:, : len(params[name])] @ params[name] for name in SHAPES]


def plans_of(params, x, patterns=PATTERNS):
    rules = {name: [js.Rule(".*", name, sizes=None)] for name in patterns}
    plan = lambda r: js.plan_sparsity(params, r, fn=fn, args=(x,), dense_head=False)
    return [plan(r) for r in rules.values()]


def pruned_by(scores, w, n, m):
    return np.where(reference.top_n_mask(np.asarray(scores), n, m, 0), w, 0)


def best_plan(costs, errors, budget):
    """The best choice for each leaf, by trying all; 0 is dense."""
    names, best = list(costs), (np.inf, None)
    for choice in itertools.product(*(range(len(costs[name])) for name in names)):
        cost = sum(costs[name][i] for name, i in zip(names, choice, strict=True))
        error = sum(errors[name][i] for name, i in zip(names, choice, strict=True))
        if cost <= budget and error < best[0]:
            best = error, choice
    return dict(zip(names, best[1], strict=True))


def choice_of(plan):
    names = [None, *PATTERNS]
    return {
        leaf.path: names.index(None if leaf.pattern is None else str(leaf.pattern))
        for leaf in plan.leaves
    }


def weights_kept(params):
    return {
        name: [w.size, *(w.size * n / m for n, m in PATTERNS.values())]
        for name, w in params.items()
    }


@pytest.mark.sweep
@pytest.mark.parametrize("budget", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize(
    "statistic", [None, "mean_square", "second_moment", "held_out"]
)
def test_the_plan_is_the_best_of_all(statistic, budget):
    params, x = network()
    plans = plans_of(params, x)
    statistics = None
    if statistic is not None:
        held_out = 0.5 if statistic == "held_out" else 0.0
        kind = "second_moment" if held_out else statistic
        statistics = js.collect_statistics(
            fn,
            params,
            [x[:80], x[80:]],
            plan=plans[0],
            statistic=kind,
            held_out=held_out,
        )
    errors = {}
    for name, leaf in params.items():
        w = np.asarray(leaf, np.float64)
        inputs = np.asarray(x[:, : len(w)], np.float64)
        moment = inputs.T @ inputs
        if statistic is None:
            moment = np.eye(len(w))
        elif statistic == "mean_square":
            moment = np.diag(np.diag(moment))
        seen = inputs[:80] if statistic == "held_out" else inputs
        norms = np.sqrt(np.diag(moment if statistic is None else seen.T @ seen))
        scores = np.abs(w) * norms[:, None]
        if statistic == "held_out":
            moment = inputs[80:].T @ inputs[80:]
        norm = lambda d, h=moment: np.trace(d.T @ h @ d)
        errors[name] = [0.0] + [
            norm(w - pruned_by(scores, w, n, m)) / norm(w) for n, m in PATTERNS.values()
        ]
    kept = weights_kept(params)
    limit = budget * sum(options[0] for options in kept.values())
    plan = js.allocate(plans, params, statistics, budget=budget)
    assert choice_of(plan) == best_plan(kept, errors, limit)


def test_the_measured_loss_decides():
    params, x = network()
    plans = plans_of(params, x)
    power = {"a": 1e-6, "b": 1.0, "c": 1e-5, "d": 1e-3}

    def loss(params):
        return sum(power[name] * jnp.sum(jnp.cos(w) * w) for name, w in params.items())

    errors = {}
    for name, leaf in params.items():
        pruned = [pruned_by(np.abs(leaf), leaf, n, m) for n, m in PATTERNS.values()]
        change = lambda v, w=leaf: np.sum(np.cos(v) * v) - np.sum(np.cos(w) * w)
        errors[name] = [0.0] + [power[name] * change(np.asarray(v)) for v in pruned]
    kept = weights_kept(params)
    limit = 0.5 * sum(options[0] for options in kept.values())
    plan = js.allocate(plans, params, budget=0.5, loss=jax.jit(loss))
    assert choice_of(plan) == best_plan(kept, errors, limit)


@pytest.mark.sweep
@pytest.mark.parametrize("budget", [0.5, 0.7])
def test_a_budget_of_bytes_counts_compressed_leaves(budget):
    params, x = network()
    params = {name: w.astype(jnp.bfloat16) for name, w in params.items()}
    plan = js.allocate(plans_of(params, x), params, budget=budget, cost="bytes")
    size = lambda tree: sum(leaf.nbytes for leaf in tree.values())
    assert size(js.compress_params(params, plan)) <= budget * size(params)
    larger = js.allocate(plans_of(params, x), params, budget=budget + 0.1, cost="bytes")
    assert size(js.compress_params(params, larger)) > budget * size(params)


def test_a_cost_of_your_own_can_prefer_2_4_for_its_speed():
    params, x = network()
    plans = plans_of(params, x, ["2:4", "4:8"])
    seconds = lambda leaf: {"2:4": 0.6, "4:8": 0.9}.get(str(leaf.pattern), 1.0)
    by_speed = js.allocate(plans, params, budget=0.72, cost=seconds)
    by_weights = js.allocate(plans, params, budget=0.7)
    patterns = lambda plan: {str(leaf.pattern) for leaf in plan.sparse}
    assert "2:4" in patterns(by_speed)
    assert patterns(by_weights) == {"4:8"}
    total = sum(map(seconds, by_speed.leaves))
    assert total <= 0.72 * len(SHAPES)


def test_sensitive_leaves_stay_dense_and_say_so():
    params, x = network()
    params["bias"] = jnp.ones(8)
    plans = plans_of(params, x, ["2:4"])
    for name in ("a", "b", "d"):
        plan = js.allocate(plans, params, budget=0.8, sensitivity={name: 1e6})
        assert plan[name].decision == (
            "dense: by allocation, since pruning it loses much"
        )
        assert plan["bias"] == plans[0]["bias"]
        result = js.MagnitudeSearcher(plan).search(params)
        js.check_sparsity(result.params, plan)
    whole = js.allocate(plans[0], params, budget=1.0)
    assert whole.sparse == ()
    least = js.allocate(plans[0], params, budget=0.5)
    assert least == plans[0]


@pytest.mark.sweep
def test_any_searcher_measures_the_errors():
    params, x = network()
    plans = plans_of(params, x, ["2:4"])
    statistics = js.collect_statistics(fn, params, [x], plan=plans[0])
    options = {"budget": 0.8, "searcher": js.SparseGPTSearcher}
    plan = js.allocate(plans, params, statistics, **options)
    result = js.SparseGPTSearcher(plans[0]).search(params, statistics)
    report = js.calibration_report(params, result, statistics)
    errors = {leaf.path: [0.0, leaf.error**2] for leaf in report}
    kept = {name: [w.size, w.size / 2] for name, w in params.items()}
    limit = 0.8 * sum(w.size for w in params.values())
    dense = {leaf.path: int(leaf.pattern is not None) for leaf in plan.leaves}
    assert dense == best_plan(kept, errors, limit)


@pytest.mark.sweep
@pytest.mark.parametrize("threshold", [2.0, 5.0])
def test_outliers_are_scores_above_a_multiple_of_their_mean(threshold):
    params, x = network()
    (plan,) = plans_of(params, x, ["2:4"])
    statistics = js.collect_statistics(fn, params, [x], plan=plan)
    ratios = js.outlier_ratios(params, plan, statistics, threshold=threshold)
    for name, leaf in params.items():
        norms = np.linalg.norm(np.asarray(x[:, : len(leaf)], np.float64), axis=0)
        scores = np.abs(np.asarray(leaf, np.float64)) * norms[:, None]
        expected = (scores > threshold * scores.mean()).mean()
        np.testing.assert_allclose(ratios[name], expected, atol=1e-6)
    assert 0 < ratios["c"] < 1
    js.allocate(plan, params, statistics, budget=0.8, sensitivity=ratios)


def test_what_cannot_be_allocated_is_refused():
    params, x = network()
    plans = plans_of(params, x, ["2:4"])
    with pytest.raises(ValueError, match=r"budget of 0.4 is below the 0.5 that"):
        js.allocate(plans, params, budget=0.4)
    with pytest.raises(ValueError, match=r"more than 0 and at most 1, got 1.5"):
        js.allocate(plans, params, budget=1.5)
    with pytest.raises(TypeError, match="needs plans of plan_sparsity, got '2:4'"):
        _checked("2:4", flatten(params))
    with pytest.raises(ValueError, match="no plan prunes any leaf"):
        js.allocate([], params, budget=0.5)
    with pytest.raises(ValueError, match=r"\['z'\], which no plan prunes"):
        js.allocate(plans, params, budget=0.8, sensitivity={"z": 1.0})
    with pytest.raises(ValueError, match=r"errors of leaf 'a' are .*nan"):
        js.allocate(plans, params, budget=0.8, sensitivity={"a": np.nan})
    with pytest.raises(ValueError, match=r"cost of leaf 'a' of shape .* got -1.0"):
        js.allocate(plans, params, budget=0.8, cost=lambda _: -1)
    with pytest.raises(ValueError, match="made for a leaf 'a' of shape"):
        js.allocate(plans, {**params, "a": jnp.ones((4, 4))}, budget=0.8)
    shared = js.plan_sparsity(
        params, js.Unstructured(0.5, across_leaves=True), fn=fn, args=(x,)
    )
    with pytest.raises(ValueError, match="its sparsity depends on other leaves"):
        js.allocate(shared, params, budget=0.8)
