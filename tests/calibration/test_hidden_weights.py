"""Weights that a constant mask of the function hides, as in autoregressive layers."""

import numpy as np
import pytest

import jaxsparse as js
from tests.calibration import sparsegpt_oracle as oracle
from tests.calibration.statistics_oracle import normal
from tests.calibration.test_factors import K, X, collect


def masked_layer(visible):
    fn = lambda p, x: x @ (p["w"] * visible)
    params = {"w": normal(K, K, seed=1)}
    return params, *collect(fn, params, X)


def test_sparsegpt_compensates_by_weights_that_a_constant_mask_shows():
    visible = normal(K, K, seed=2) > 0
    params, plan, statistics = masked_layer(visible)
    result = js.SparseGPTSearcher(plan).search(params, statistics)

    def choose(costs, first):  # hidden weights are zero whatever was chosen
        shown = visible[first : first + 4]
        return oracle.keep_highest(2)(np.where(shown, costs, 0), first) & shown

    moment = oracle.shrunk(np.float64(X).T @ X / len(X))
    weights, shown = oracle.sparsegpt(params["w"] * visible, moment, choose, 4)
    mask = np.asarray(result.masks["w"])
    assert np.all(mask.reshape(4, 4, K).sum(1) == 2)
    np.testing.assert_array_equal(mask & visible, shown)
    hidden = mask & ~visible
    assert np.any(hidden)
    np.testing.assert_array_equal(result.params["w"][hidden], params["w"][hidden])
    np.testing.assert_allclose(
        result.params["w"] * visible, weights, rtol=1e-4, atol=1e-5
    )


def test_kept_weights_that_a_constant_mask_hides_compensate_for_nothing():
    visible = np.triu(np.ones((K, K), bool), 1)  # as in an autoregressive layer
    params, plan, statistics = masked_layer(visible)
    searcher = js.SparseGPTSearcher(plan, shrinkage=0.0, update_weights="optimal")
    result = searcher.search(params, statistics)
    fitted = js.fit_weights(params, result.masks, statistics, shrinkage=0.0)
    target, mask = X @ (params["w"] * visible), np.asarray(result.masks["w"])
    assert np.any(mask & ~visible)
    for j in range(K):
        used = mask[:, j] & visible[:, j]
        best = np.linalg.lstsq(np.float64(X[:, used]), target[:, j], rcond=None)[0]
        for weights in (result.params, fitted):
            found = np.asarray(weights["w"])[used, j]
            np.testing.assert_allclose(found, best, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "prune",
    [
        lambda plan, p, s: js.ADMMSearcher(plan, shrinkage=0.0).search(p, s),
        lambda plan, p, s: js.SparseGPTSearcher(plan, shrinkage=0.0, refine=2).search(
            p, s
        ),
        lambda plan, p, s: js.refine_masks(
            p, js.create_masks(p, plan), s, plan=plan, shrinkage=0.0
        ),
    ],
    ids=["admm", "sparsegpt", "refine_masks"],
)
def test_hidden_weights_compensate_for_nothing_in_masks_that_are_improved(prune):
    visible = normal(K, K, seed=2) > 0.5
    params, plan, statistics = masked_layer(visible)
    result = prune(plan, params, statistics)
    mask = np.asarray(result.masks["w"])
    hidden = mask & ~visible
    assert np.any(hidden)
    np.testing.assert_array_equal(result.params["w"][hidden], params["w"][hidden])
    target = np.float64(X) @ (params["w"] * visible)
    for j in range(K):
        used = mask[:, j] & visible[:, j]
        inputs = np.float64(X[:, used])
        best = inputs @ np.linalg.lstsq(inputs, target[:, j], rcond=None)[0]
        found = inputs @ np.asarray(result.params["w"])[used, j]
        np.testing.assert_allclose(found, best, atol=2e-3 * np.abs(target).max())
