"""Weights times factors are pruned as the same weights with the factors merged."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxsparse as js
from tests.calibration.statistics_oracle import normal


K = 16
X = normal(200, K) * np.linspace(0.2, 2, K, dtype=np.float32)
ROWS = np.exp(normal(K, seed=3))
COLUMNS = np.exp(normal(8, seed=4))
FULL = normal(K, 8, seed=5)
RULES = [js.Rule("w", "2:4", sizes=None), js.Rule(".*", None)]


def collect(fn, params, *batches, rules=RULES, statistic="second_moment"):
    plan = js.plan_sparsity(params, rules, fn=fn, args=batches[:1], dense_head=False)
    options = {"plan": plan, "statistic": statistic}
    return plan, js.collect_statistics(fn, params, list(batches), **options)


#: name: (the matrix that `w` and other parameters make, the factor of each weight)
SCALED = {
    "parameter along the inputs": (lambda p: p["w"] * p["s"][:, None], ROWS[:, None]),
    "constant along the inputs": (lambda p: ROWS[:, None] * p["w"], ROWS[:, None]),
    "divisor along the inputs": (lambda p: p["w"] / ROWS[:, None], 1 / ROWS[:, None]),
    "function of a parameter": (
        lambda p: p["w"] * jnp.exp(-p["s"])[:, None],
        np.exp(-ROWS)[:, None],
    ),
    "along the outputs": (lambda p: p["w"] * COLUMNS, COLUMNS),
    "of each weight": (lambda p: p["w"] * FULL, FULL),
    "two factors": (
        lambda p: 3 * (p["w"] * COLUMNS).T.T * p["s"][:, None] / 7,
        3 / 7 * COLUMNS * ROWS[:, None],
    ),
    "behind a reshape": (
        lambda p: (p["w"].reshape(4, 4, 8) * FULL.reshape(4, 4, 8)).reshape(K, 8),
        FULL,
    ),
    "transposed": (lambda p: (p["w"].T * FULL.T).T, FULL),
    "reversed outputs": (lambda p: p["w"][:, ::-1] * COLUMNS, COLUMNS[::-1]),
    "of pieces": (
        lambda p: jnp.concatenate(
            [p["w"][:8] * 3, -p["w"][8:12] / ROWS[8:12, None], p["w"][12:]]
        ),
        np.concatenate([np.full(8, 3), -1 / ROWS[8:12], np.ones(4)])[:, None],
    ),
    "masked": (lambda p: jnp.where(FULL > -1, p["w"], 0), FULL > -1),
    "a sum of its multiples": (lambda p: 2 * p["w"] + FULL * p["w"], 2 + FULL),
    "in a function": (
        jax.jit(lambda p: jax.checkpoint(jnp.multiply)(p["w"], FULL)),
        FULL,
    ),
    "in a narrow dtype": (
        lambda p: (p["w"].astype(jnp.bfloat16) * 2).astype(jnp.float32),
        np.float32(2),
    ),
    "a norm's gain": (
        lambda p: p["w"] / jnp.linalg.norm(p["w"], axis=1, keepdims=True),
        None,
    ),
}


def case(name):
    change, factor = SCALED[name]
    params = {"w": normal(K, 8, seed=1), "s": ROWS}
    if factor is None:
        factor = 1 / np.linalg.norm(params["w"], axis=1, keepdims=True)
    merged = {"w": (params["w"] * factor).astype(np.float32)}
    return (lambda p, x: x @ change(p)), params, merged, np.broadcast_to(factor, (K, 8))


@pytest.mark.sweep
@pytest.mark.parametrize("name", SCALED)
def test_masks_and_weights_are_those_of_the_merged_matrix(name):
    fn, params, merged, factor = case(name)
    plan, statistics = collect(fn, params, X)
    assert plan["w"].decision == "2:4 along axis 0"
    # The products of inputs of different pieces are not in second moments.
    pieces = [0, 8, 12, K] if name == "of pieces" else [0, K]
    parts = [slice(*ends) for ends in itertools.pairwise(pieces)]
    plain_fn = lambda p, x: sum(x[:, part] @ p["w"][part] for part in parts)
    _, plain = collect(plain_fn, merged, X)
    np.testing.assert_allclose(statistics["w"].factors, factor, rtol=1e-5)
    for searcher in (js.WandaSearcher, js.SparseGPTSearcher):
        result = searcher(plan).search(params, statistics)
        expected = searcher(plan).search(merged, plain)
        keeps = np.asarray(expected.masks["w"]) & (factor != 0)
        np.testing.assert_array_equal(result.masks["w"] & (factor != 0), keeps)
        np.testing.assert_allclose(
            result.params["w"] * factor, expected.params["w"], rtol=2e-4, atol=2e-5
        )
    fitted = js.fit_weights(params, result.masks, statistics)["w"] * factor
    best = js.fit_weights(merged, expected.masks, plain)["w"]
    np.testing.assert_allclose(fitted, best, rtol=2e-4, atol=2e-5)


def test_scores_are_those_of_numpy():
    fn, params, _, _ = case("parameter along the inputs")
    plan, statistics = collect(fn, params, X, statistic="mean_square")
    kept = js.WandaSearcher(plan).search(params, statistics).masks["w"]
    norms = np.sqrt((X.astype(np.float64) ** 2).mean(0))
    scores = abs(params["w"]) * (norms * ROWS)[:, None]
    groups = scores.reshape(4, 4, 8)
    expected = groups >= np.sort(groups, 1)[:, 2:3]
    np.testing.assert_array_equal(np.asarray(kept).reshape(4, 4, 8), expected)


def test_the_report_is_the_error_of_the_function():
    fn, params, _, _ = case("two factors")
    plan, statistics = collect(fn, params, X)
    wanda = js.WandaSearcher(plan).search(params, statistics)
    magnitude = js.MagnitudeSearcher(plan).search(params)
    dense = np.asarray(fn(params, X))
    error = lambda result: (
        np.linalg.norm(dense - fn(result.params, X)) / np.linalg.norm(dense)
    )
    (leaf,) = js.calibration_report(params, wanda, statistics)
    np.testing.assert_allclose(leaf.error, error(wanda), rtol=1e-4)
    np.testing.assert_allclose(leaf.magnitude_error, error(magnitude), rtol=1e-4)
    assert leaf.error < leaf.magnitude_error


def test_layers_of_a_scan_have_their_own_factors():
    scales = np.exp(normal(3, K, seed=7))
    params = {"w": normal(3, K, K, seed=1) / 4}

    def fn(p, x):
        step = lambda x, layer: (jnp.tanh(x @ (layer[0] * layer[1][:, None])), None)
        return lax.scan(step, x, (p["w"], scales))[0]

    _, statistics = collect(fn, params, X, X[:50])
    expected = np.broadcast_to(scales[:, :, None], (3, K, K))
    np.testing.assert_allclose(statistics["w"].factors, expected, rtol=1e-6)


@pytest.mark.parametrize("outside", [True, False])
def test_branches_have_the_factors_of_what_enters_them(outside):
    scale = lambda w: w * COLUMNS

    def fn(p, x):
        w = scale(p["w"]) if outside else p["w"]
        inside = lambda w: w if outside else scale(w)
        return lax.cond(x.sum() > 0, lambda: x @ inside(w), lambda: -x @ inside(w))

    _, statistics = collect(fn, {"w": normal(K, 8, seed=1)}, X, -X)
    expected = np.broadcast_to(COLUMNS, (K, 8))
    np.testing.assert_allclose(statistics["w"].factors, expected, rtol=1e-6)


def test_a_convolution_with_scaled_channels():
    params = {"w": normal(3, 3, 16, 8, seed=1)}
    numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    fn = lambda p, x: lax.conv_general_dilated(
        x, p["w"] * ROWS[:, None], (1, 1), "SAME", **numbers
    )
    plan, statistics = collect(fn, params, normal(2, 5, 5, 16))
    assert plan["w"].axis == 2
    expected = np.broadcast_to(ROWS[:, None], (3, 3, 16, 8))
    np.testing.assert_allclose(statistics["w"].factors, expected, rtol=1e-6)


def test_stages_take_factors_too():
    params = {"w": normal(K, K, seed=1), "v": normal(K, 8, seed=2)}
    fn = lambda p, x: jnp.tanh(x @ (p["w"] * ROWS[:, None])) @ (p["v"] * ROWS[:, None])
    rules = [js.Rule(".*", "2:4", axis=0, sizes=None)]
    result = js.prune_sequentially(
        fn, params, [X], js.WandaSearcher(rules), boundaries=["w", "v"]
    )
    hidden = np.tanh(X @ (np.asarray(result.params["w"]) * ROWS[:, None]))
    scores = abs(params["v"]) * (np.sqrt((hidden**2).mean(0)) * ROWS)[:, None]
    groups = scores.reshape(4, 4, 8)
    expected = groups >= np.sort(groups, 1)[:, 2:3]
    mask = np.asarray(result.masks["v"]).reshape(4, 4, 8)
    np.testing.assert_array_equal(mask, expected)


def in_a_carry(p, x):
    step = lambda c, _: ((c[0] @ c[1], 0.9 * c[1]), None)
    return lax.scan(step, (x, p["w"] * ROWS[:, None]), None, length=2)[0]


def chosen(p, x):
    return x @ lax.cond(p["w"][0, 0] > 0, lambda w: w * ROWS, lambda w: 2 * w, p["w"])


@pytest.mark.parametrize(
    ("fn", "why"),
    [
        (lambda p, x: x @ p["w"] ** 3, "integer_pow"),
        (lambda p, x: x @ (2 * jnp.tanh(p["w"])), "tanh"),
        (lambda p, x: x @ (p["w"] * p["w"]), "mul"),
        (lambda p, x: x @ (p["w"] * jax.nn.sigmoid(p["w"])), "mul"),
        (lambda p, x: x @ (p["w"] / (1 + p["w"] ** 2)), "div"),
        (lambda p, x: x @ jax.nn.relu(p["w"]), "max"),
        (in_a_carry, "carried by a loop"),
        (chosen, "carried by a loop or returned by a branch"),
    ],
)
def test_what_is_more_than_a_factor_is_refused_by_name(fn, why):
    params = {"w": normal(K, K, seed=1)}
    with pytest.raises(ValueError, match=rf"leaf 'w' of shape .*{why}"):
        collect(fn, params, X)


def test_different_factors_in_two_products_are_refused_by_name():
    params = {"w": normal(K, K, seed=1)}
    fn = lambda p, x: (x @ (p["w"] * ROWS[:, None])) @ p["w"]
    with pytest.raises(ValueError, match=r"leaf 'w' .*factors that.*differ between"):
        collect(fn, params, X)
    same = lambda p, x: (x @ (p["w"] * ROWS[:, None])) @ (ROWS[:, None] * p["w"])
    assert collect(same, params, X)[1]["w"].factors is not None
    with pytest.raises(ValueError, match=r"leaf 'w' .*are not finite"):
        collect(lambda p, x: x @ (p["w"] / jnp.zeros(16)), params, X)


def test_rounding_is_ignored():
    params = {"w": normal(K, 8, seed=1)}
    fn = lambda p, x: x @ (jnp.round(p["w"] / 0.1) * 0.1)
    _, statistics = collect(fn, params, X)
    np.testing.assert_allclose(statistics["w"].factors, np.ones((K, 8)), rtol=1e-5)


#: Factors that the data determine.
BY_DATA = {
    "of all weights": lambda p, x: p["w"] * x.mean(),
    "divisor of all weights": lambda p, x: p["w"] / x.std(),
    "along the inputs": lambda p, x: p["w"] * x.mean(0)[:, None],
    "along the outputs": lambda p, x: x[:1, :8] * p["w"],
    "twice": lambda p, x: (p["w"].T * x.mean(0)).T * x.max(),
}


@pytest.mark.parametrize("name", BY_DATA)
def test_a_factor_of_the_data_is_that_of_the_merged_matrix(name):
    scale = BY_DATA[name]
    params = {"w": normal(K, 8, seed=1)}
    plan, statistics = collect(lambda p, x: x @ scale(p, x), params, X)
    assert plan["w"].decision == "2:4 along axis 0"
    factor = np.asarray(scale({"w": np.ones((K, 8), np.float32)}, X))
    np.testing.assert_allclose(statistics["w"].factors, factor, rtol=1e-5)
    norms = np.sqrt((X.astype(np.float64) ** 2).mean(0))
    scores = abs(params["w"] * factor) * norms[:, None]
    groups = scores.reshape(4, 4, 8)
    mask = np.asarray(js.WandaSearcher(plan).search(params, statistics).masks["w"])
    expected = groups >= np.sort(groups, 1)[:, 2:3]
    np.testing.assert_array_equal(mask.reshape(4, 4, 8), expected)


def test_a_factor_of_the_data_must_be_the_same_in_all_batches():
    params = {"w": normal(K, 8, seed=1)}
    fn = lambda p, x, scale: x @ (p["w"] * scale)
    two = [(X[:50], np.float32(2)), (X[50:], np.float32(2))]
    plan = js.plan_sparsity(params, RULES, fn=fn, args=two[0])
    statistics = js.collect_statistics(fn, params, two, plan=plan)
    np.testing.assert_array_equal(statistics["w"].factors, np.full((K, 8), 2))
    two[1] = (X[50:], np.float32(3))
    with pytest.raises(ValueError, match=r"leaf 'w' .*differ between .*batches"):
        js.collect_statistics(fn, params, two, plan=plan)
    each = jax.vmap(lambda p, x: x @ (p["w"] * x.mean()), (None, 0))
    with pytest.raises(ValueError, match=r"leaf 'w' .*differ between .*batches"):
        collect(each, params, X)


def test_a_factor_of_the_data_of_an_earlier_stage():
    params = {"w": normal(K, K, seed=1), "v": normal(K, 8, seed=2)}

    def fn(p, x):
        hidden = jnp.tanh(x @ p["w"])
        return hidden @ (p["v"] * hidden.std(0)[:, None])

    rules = [js.Rule(".*", "2:4", axis=0, sizes=None)]
    searcher = js.WandaSearcher(rules)
    result = js.prune_sequentially(fn, params, [X], searcher, boundaries=["w", "v"])
    hidden = np.tanh(X @ np.asarray(result.params["w"]))
    norms = np.sqrt((hidden**2).mean(0)) * hidden.std(0)
    groups = (abs(params["v"]) * norms[:, None]).reshape(4, 4, 8)
    mask = np.asarray(result.masks["v"]).reshape(4, 4, 8)
    np.testing.assert_array_equal(mask, groups >= np.sort(groups, 1)[:, 2:3])
