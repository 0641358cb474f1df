"""Scores of Wanda and RIA as trees, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js


INPUTS = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
KERNEL = np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)
PARAMS = {"kernel": jnp.asarray(KERNEL), "bias": jnp.ones(8)}


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


@pytest.fixture(scope="module")
def statistics():
    return js.collect_statistics(dense, PARAMS, [INPUTS], statistic="mean_square")


def norms():
    return np.sqrt(np.mean(INPUTS.astype(np.float64) ** 2, axis=0))[:, None]


def test_wanda_scores_are_magnitudes_times_norms(statistics):
    scores = js.wanda_scores(PARAMS, statistics)
    np.testing.assert_allclose(scores["kernel"], np.abs(KERNEL) * norms(), rtol=1e-5)
    assert scores["bias"] is PARAMS["bias"]
    masks = js.create_masks(PARAMS, "2:4", scores=scores)
    found = js.WandaSearcher("2:4").search(PARAMS, statistics)
    assert np.array_equal(masks["kernel"], found.masks["kernel"])


@pytest.mark.parametrize("power", [0.5, 0.0, 1.0])
def test_ria_scores_are_shares_of_inputs_and_outputs(statistics, power):
    sizes = np.abs(KERNEL.astype(np.float64))
    shares = sizes / sizes.sum(0) + sizes / sizes.sum(1, keepdims=True)
    scores = js.ria_scores(PARAMS, statistics, power=power)
    expected = shares * norms() ** power
    np.testing.assert_allclose(scores["kernel"], expected, rtol=1e-5)


def test_ria_scores_of_experts_are_those_of_each():
    experts = np.random.default_rng(2).normal(size=(3, 16, 8)).astype(np.float32)
    inputs = np.random.default_rng(3).normal(size=(3, 20, 16)).astype(np.float32)
    params = {"experts": jnp.asarray(experts).at[1, :, 0].set(0)}
    fn = lambda params, x: jnp.einsum("etk,eko->eto", x, params["experts"])
    plan = js.plan_sparsity(params, "2:4", fn=fn, args=(inputs,), dense_head=False)
    statistics = js.collect_statistics(fn, params, [inputs], plan=plan)
    scores = js.ria_scores(params, statistics)["experts"]
    for i, x in enumerate(inputs):
        sizes = np.abs(np.asarray(params["experts"][i], np.float64))
        columns = sizes.sum(0)
        of_output = np.divide(
            sizes, columns, out=np.zeros_like(sizes), where=columns > 0
        )
        norm = np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=0))[:, None]
        expected = (of_output + sizes / sizes.sum(1, keepdims=True)) * np.sqrt(norm)
        np.testing.assert_allclose(scores[i], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("score", [js.wanda_scores, js.ria_scores])
def test_statistics_of_other_leaves_are_refused(score, statistics):
    with pytest.raises(ValueError, match=r"leaves \['kernel'\], none of which"):
        score({"other": PARAMS["kernel"]}, statistics)
    with pytest.raises(ValueError, match=r"leaf 'kernel' are for shape \(16, 8\)"):
        score({"kernel": jax.numpy.ones((8, 8))}, statistics)
