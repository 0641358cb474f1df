"""Held-out statistics, and what is chosen and reported by them."""

import numpy as np
import pytest

import jaxsparse as js
from tests.calibration import sparsegpt_oracle


RULES = [js.Rule(".*", "2:4", axis=0, sizes=None)]
GRID = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
_RANDOM = np.random.default_rng(0)
PARAMS = {
    name: _RANDOM.normal(size=(size, 8)).astype(np.float32)
    for name, size in (("few", 48), ("many", 16))
}
#: Twenty batches of ten tokens: few for 48 independent inputs, many for 16 that are
#: correlated.
_FEW = _RANDOM.normal(size=(20, 10, 48)).astype(np.float32)
_MANY = np.split(sparsegpt_oracle.correlated(_RANDOM, 200, 16), 20)
BATCHES = list(zip(_FEW, _MANY, strict=True))


def multiply(params, few, many):
    return few @ params["few"], many @ params["many"]


def collect(batches=BATCHES, **options):
    return js.collect_statistics(multiply, PARAMS, batches, plan=RULES, **options)


def inputs(name, held_out):
    """Returns the inputs of every fourth batch, or those of all others."""
    i = ("few", "many").index(name)
    chosen = [x[i] for n, x in enumerate(BATCHES) if (n in range(3, 20, 4)) == held_out]
    return np.concatenate(chosen).astype(np.float64)


def relative_error(name, weight, held_out=True):
    x, dense = inputs(name, held_out), PARAMS[name].astype(np.float64)
    return np.linalg.norm(x @ (dense - weight)) / np.linalg.norm(x @ dense)


@pytest.mark.parametrize("limit", [None, 4 * 48**2])
def test_every_fourth_batch_is_held_out_of_the_statistics(limit):
    statistics = collect(held_out=0.25, memory_limit=limit)
    for name, leaf in statistics.items():
        for part, held_out in ((leaf, False), (leaf.held_out, True)):
            x = inputs(name, held_out)
            np.testing.assert_allclose(
                part.second_moment[0], x.T @ x / len(x), rtol=1e-4, atol=1e-4
            )
            assert part.tokens.tolist() == [50.0 if held_out else 150.0]
    assert all(leaf.held_out is None for leaf in collect().values())
    squares = collect(held_out=0.25, statistic="mean_square")["many"].held_out
    expected = (inputs("many", True) ** 2).mean(0)
    np.testing.assert_allclose(squares.mean_square[0], expected, rtol=1e-5)


def test_held_out_statistics_take_memory_too():
    batches = iter(BATCHES)
    with pytest.raises(ValueError, match="needs 2 passes"):
        collect(batches, held_out=0.25, memory_limit=4 * (48**2 + 16**2))


def test_too_few_batches_and_wrong_shares_are_refused():
    message = "held_out=0.1 holds out one batch of 10, and there are 9: use smaller"
    with pytest.raises(ValueError, match=message):
        collect(BATCHES[:9], held_out=0.1)
    with pytest.raises(ValueError, match=message):
        collect(iter(BATCHES[:9]), held_out=0.1)
    for share in (-0.1, 0.6, 1.0):
        with pytest.raises(ValueError, match="held_out must be the share"):
            collect(held_out=share)
    signs = [np.float32(1 if number % 2 else -1) for number in range(20)]
    batches = [
        (-sign * abs(few), many)
        for sign, (few, many) in zip(signs, BATCHES, strict=True)
    ]
    with pytest.raises(ValueError, match=r"'few' .* no tokens in the held-out batches"):
        collect(batches, held_out=0.5, weights=lambda few, _: few[:, 0] > 0)


SEARCHERS = {
    "SparseGPT": lambda s: js.SparseGPTSearcher(RULES, shrinkage=s),
    "refined": lambda s: js.SparseGPTSearcher(RULES, shrinkage=s, refine=2),
    "ADMM": lambda s: js.ADMMSearcher(RULES, shrinkage=s),
}


@pytest.mark.filterwarnings("ignore:.*fewer")
@pytest.mark.sweep(full=["refined"])
@pytest.mark.parametrize("name", SEARCHERS)
def test_auto_takes_the_shrinkage_of_least_held_out_error_for_each_leaf(name):
    statistics = collect(held_out=0.25)
    results = [SEARCHERS[name](s).search(PARAMS, statistics) for s in GRID]
    auto = SEARCHERS[name]("auto").search(PARAMS, statistics)
    chosen = []
    for leaf in PARAMS:
        errors = [relative_error(leaf, np.asarray(x.params[leaf])) for x in results]
        chosen.append(int(np.argmin(errors)))
        best = results[chosen[-1]]
        np.testing.assert_array_equal(auto.params[leaf], best.params[leaf])
        np.testing.assert_array_equal(auto.masks[leaf], best.masks[leaf])
    # What few tokens show of independent inputs is chance.
    assert chosen[0] > chosen[1]


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore:.*fewer")
def test_auto_fits_and_refines_given_masks():
    statistics, masks = collect(held_out=0.25), js.create_masks(PARAMS, RULES)
    fit = lambda s: js.fit_weights(PARAMS, masks, statistics, shrinkage=s)
    refine = lambda s: (
        js.refine_masks(
            PARAMS, masks, statistics, plan=RULES, sweeps=2, shrinkage=s
        ).params
    )
    for run in (fit, refine):
        results, auto = [run(s) for s in GRID], run("auto")
        for leaf in PARAMS:
            errors = [relative_error(leaf, np.asarray(x[leaf])) for x in results]
            np.testing.assert_array_equal(
                auto[leaf], results[int(np.argmin(errors))][leaf]
            )


@pytest.mark.filterwarnings("ignore:.*fewer")
def test_auto_needs_held_out_statistics():
    statistics, masks = collect(), js.create_masks(PARAMS, RULES)
    message = r"leaf 'few' of shape \(48, 8\) have no held-out part.*held_out=0.1"
    for run in (
        js.SparseGPTSearcher(RULES, shrinkage="auto").search,
        js.ADMMSearcher(RULES, shrinkage="auto").search,
        lambda params, s: js.fit_weights(params, masks, s, shrinkage="auto"),
        lambda params, s: js.refine_masks(
            params, masks, s, plan=RULES, shrinkage="auto"
        ),
    ):
        with pytest.raises(ValueError, match=message):
            run(PARAMS, statistics)


@pytest.mark.filterwarnings("ignore:.*fewer")
def test_the_report_shows_both_errors_side_by_side():
    statistics = collect(held_out=0.25)
    result = js.SparseGPTSearcher(RULES, shrinkage=0.0).search(PARAMS, statistics)
    report = js.calibration_report(PARAMS, result, statistics)
    for leaf in report:
        weight = np.asarray(result.params[leaf.path])
        expected = [relative_error(leaf.path, weight, held) for held in (False, True)]
        np.testing.assert_allclose([leaf.error, leaf.held_out], expected, rtol=1e-3)
    assert report.leaves[0].error < (report.leaves[0].held_out or 0)
    header, row, _ = str(report).splitlines()
    assert header.split()[:6] == ["leaf", "shape", "tokens", "error", "held", "out"]
    assert f"{report.leaves[0].error:.3f}  {report.leaves[0].held_out:.3f}" in row
    plain = js.calibration_report(PARAMS, result, collect())
    assert "held out" not in str(plain)
    assert plain.leaves[0].held_out is None
