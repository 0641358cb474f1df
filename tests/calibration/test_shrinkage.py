"""Second moments shrunk towards their diagonal, against NumPy in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from tests.calibration import sparsegpt_oracle as oracle


RULES = [js.Rule(".*", "2:4", axis=0, sizes=None)]


def layer(seed, inputs=24, outputs=8, tokens=200):
    rng = np.random.default_rng(seed)
    params = {"w": rng.normal(size=(inputs, outputs)).astype(np.float32)}
    x = oracle.correlated(rng, tokens, inputs)
    fn = lambda params, x: x @ params["w"]
    return params, x, js.collect_statistics(fn, params, [x], plan=RULES)


@pytest.mark.parametrize("shrinkage", [0.0, 0.3])
def test_masks_and_weights_are_those_of_the_shrunk_moment(shrinkage):
    params, x, statistics = layer(0)
    searcher = js.SparseGPTSearcher(RULES, shrinkage=shrinkage)
    result = searcher.search(params, statistics)
    moment = oracle.shrunk(x.astype(np.float64).T @ x / len(x), shrinkage)
    weight, mask = oracle.sparsegpt(params["w"], moment, oracle.keep_highest(2), 4)
    np.testing.assert_array_equal(result.masks["w"], mask)
    np.testing.assert_allclose(result.params["w"], weight, atol=1e-5)


@pytest.mark.parametrize("shrinkage", [0.1, 0.5])
def test_fitted_weights_solve_the_equations_of_the_shrunk_moment(shrinkage):
    params, x, statistics = layer(1)
    masks = js.create_masks(params, RULES)
    fitted = js.fit_weights(params, masks, statistics, shrinkage=shrinkage)["w"]
    moment = oracle.shrunk(x.astype(np.float64).T @ x / len(x), shrinkage)
    searcher = js.SparseGPTSearcher(
        RULES, shrinkage=shrinkage, update_weights="optimal"
    )
    result = searcher.search(params, statistics)
    for weight, mask in ((fitted, masks["w"]), (result.params["w"], result.masks["w"])):
        best = np.zeros(weight.shape)
        for output, kept in enumerate(np.asarray(mask).T):
            target = moment[kept] @ params["w"][:, output]
            best[kept, output] = np.linalg.solve(moment[np.ix_(kept, kept)], target)
        error = lambda v: np.sum((params["w"] - v) * (moment @ (params["w"] - v)))
        least = error(best)
        assert least * (1 - 1e-9) <= error(np.asarray(weight, np.float64))
        assert error(np.asarray(weight, np.float64)) <= least * (1 + 1e-4)


def test_at_one_the_masks_are_wandas_and_no_weight_is_updated():
    params, _, statistics = layer(2)
    searcher = js.SparseGPTSearcher(RULES, damping=1e-9, shrinkage=1.0)
    result = searcher.search(params, statistics)
    wanda = js.WandaSearcher(RULES).search(params, statistics)
    np.testing.assert_array_equal(result.masks["w"], wanda.masks["w"])
    np.testing.assert_allclose(result.params["w"], wanda.params["w"], rtol=1e-6)


@pytest.mark.sweep
def test_the_default_loses_less_on_inputs_of_another_kind():
    """Fifty layers of 64 inputs: of the same scales, but correlated in another way."""
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(50, 64, 32)).astype(np.float32)}
    seen = np.stack([oracle.correlated(rng, 256, 64) for _ in range(50)])
    other = np.stack([oracle.correlated(rng, 256, 64) for _ in range(50)])
    other *= seen.std(1, keepdims=True) / other.std(1, keepdims=True)
    rules = [js.Rule(".*", "2:4", axis=1)]
    fn = lambda params, x: jnp.einsum("lti,lio->lto", x, params["w"])
    statistics = js.collect_statistics(fn, params, [seen], plan=rules)

    def errors(searcher):
        weight = np.asarray(searcher.search(params, statistics).params["w"], np.float64)
        return np.linalg.norm(other @ (params["w"] - weight), axis=(1, 2))

    default = errors(js.SparseGPTSearcher(rules))
    assert np.sum(default < errors(js.SparseGPTSearcher(rules, shrinkage=0.0))) >= 48


@pytest.mark.parametrize("shrinkage", [-0.1, 1.5, float("nan")])
def test_a_fraction_outside_0_to_1_is_refused(shrinkage):
    with pytest.raises(ValueError, match="shrinkage must be the fraction, from 0 to 1"):
        js.SparseGPTSearcher("2:4", shrinkage=shrinkage)
    params, _, statistics = layer(3)
    masks = js.create_masks(params, RULES)
    with pytest.raises(ValueError, match="shrinkage must be the fraction, from 0 to 1"):
        js.fit_weights(params, masks, statistics, shrinkage=shrinkage)


def test_arguments_without_names_are_those_of_before():
    searcher = js.SparseGPTSearcher("2:4", 0.02, "optimal", True)
    assert (searcher.damping, searcher.update_weights) == (0.02, "optimal")
    assert searcher.packed is True
