"""Experts that few tokens, or none, are sent to: only they do without statistics."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxsparse as js
from tests import reference


_RANDOM = np.random.default_rng(0)
#: Four experts of 16 inputs and 8 outputs; the tokens go to experts 0, 2 and 3.
_EXPERTS = _RANDOM.normal(size=(4, 16, 8)).astype(np.float32)
_TOKENS = _RANDOM.normal(size=(400, 16)).astype(np.float32)
_EXPERT_OF = np.sort(_RANDOM.choice([0, 2, 3], 400, p=[0.5, 0.3, 0.2]))
_COUNTS = np.bincount(_EXPERT_OF, minlength=4)
_RULES = [js.Rule(".*", "2:4", axis=1, sizes=None)]


def _by_slots(params, x, expert_of):
    """Each expert has 256 slots, more than it fills."""
    sent = jax.nn.one_hot(expert_of, 4, dtype=x.dtype)
    slot = ((jnp.cumsum(sent, 0) - 1) * sent).sum(1).astype(jnp.int32)
    dispatch = sent[:, :, None] * jax.nn.one_hot(slot, 256, dtype=x.dtype)[:, None]
    slots = jnp.einsum("tes,td->esd", dispatch, x)
    outputs = jnp.einsum("esd,edf->esf", slots, params["experts"])
    return jnp.einsum("tes,esf->tf", dispatch, outputs)


def _by_mask(params, x, expert_of):
    sent = jax.nn.one_hot(expert_of, 4, dtype=x.dtype)
    masked = sent[:, :, None] * x[:, None]
    return jnp.einsum("ted,edf->tef", masked, params["experts"]).sum(1)


def _by_vmap(params, x, expert_of):
    def expert(kernel, i):
        return jnp.where((expert_of == i)[:, None], x, 0) @ kernel

    return jax.vmap(expert)(params["experts"], jnp.arange(4)).sum(0)


def _by_ragged_dot(params, x, expert_of):
    sizes = jnp.bincount(expert_of, length=4).astype(jnp.int32)
    return lax.ragged_dot(x, params["experts"], sizes)


_DISPATCHES = [_by_slots, _by_mask, _by_vmap, _by_ragged_dot]


def _collect(fn, statistic="second_moment"):
    return js.collect_statistics(
        fn,
        {"experts": _EXPERTS},
        [(_TOKENS, _EXPERT_OF)],
        plan=_RULES,
        statistic=statistic,
    )


def _magnitude_mask(kernel):
    return reference.top_n_mask(np.abs(kernel), 2, 4, 0)


@pytest.mark.parametrize("fn", _DISPATCHES)
def test_an_expert_counts_the_tokens_that_are_sent_to_it(fn):
    statistics = _collect(fn)["experts"]
    np.testing.assert_array_equal(statistics.tokens, _COUNTS)
    for i in (0, 2, 3):
        sent = _TOKENS[i == _EXPERT_OF].astype(np.float64)
        moment = sent.T @ sent / len(sent)
        np.testing.assert_allclose(statistics.second_moment[i], moment, atol=1e-5)
    assert not statistics.second_moment[1].any()


def test_weights_of_tokens_still_count():
    weights = lambda *_: jnp.arange(400) % 2 == 0
    statistics = js.collect_statistics(
        _by_mask,
        {"experts": _EXPERTS},
        [(_TOKENS, _EXPERT_OF)],
        plan=_RULES,
        weights=weights,
    )
    counts = np.bincount(_EXPERT_OF[::2], minlength=4)
    np.testing.assert_array_equal(statistics["experts"].tokens, counts)


@pytest.mark.parametrize("fn", _DISPATCHES)
def test_wanda_prunes_only_the_starved_expert_by_magnitude(fn):
    statistics = _collect(fn, "mean_square")
    with pytest.warns(UserWarning, match=r"no tokens: 1 of 4 of leaf 'experts' \(1\)"):
        result = js.WandaSearcher(_RULES).search({"experts": _EXPERTS}, statistics)
    for i in range(4):
        sent = _TOKENS[i == _EXPERT_OF].astype(np.float64)
        norms = np.sqrt((sent**2).sum(0)) if len(sent) else np.ones(16)
        expected = _magnitude_mask(_EXPERTS[i] * norms[:, None])
        np.testing.assert_array_equal(result.masks["experts"][i], expected)


@pytest.mark.sweep
@pytest.mark.parametrize("update", [True, False, "optimal"])
def test_sparsegpt_prunes_the_other_experts_as_without_it(update):
    statistics = _collect(_by_slots)
    searcher = js.SparseGPTSearcher(_RULES, update_weights=update)
    with pytest.warns(UserWarning, match="met no tokens"):
        result = searcher.search({"experts": _EXPERTS}, statistics)
    mask = _magnitude_mask(_EXPERTS[1])
    np.testing.assert_array_equal(result.masks["experts"][1], mask)
    np.testing.assert_array_equal(result.params["experts"][1], _EXPERTS[1] * mask)
    alone = [js.Rule(".*", "2:4", axis=0, sizes=None)]
    fn = lambda params, x: x @ params["w"]
    for i in (0, 2, 3):
        params, sent = {"w": _EXPERTS[i]}, [_TOKENS[i == _EXPERT_OF]]
        own = js.collect_statistics(fn, params, sent, plan=alone)
        expected = js.SparseGPTSearcher(alone, update_weights=update).search(
            params, own
        )
        np.testing.assert_array_equal(result.masks["experts"][i], expected.masks["w"])
        np.testing.assert_allclose(
            result.params["experts"][i], expected.params["w"], atol=1e-4
        )


def test_fitted_weights_of_a_starved_expert_are_its_own():
    statistics = _collect(_by_vmap)
    params = {"experts": _EXPERTS}
    masks = js.create_masks(params, _RULES)
    with pytest.warns(UserWarning, match="met no tokens"):
        fitted = js.fit_weights(params, masks, statistics)
    masked = js.mask_params(params, masks)
    np.testing.assert_array_equal(fitted["experts"][1], masked["experts"][1])
    assert np.abs(fitted["experts"][0] - masked["experts"][0]).max() > 0.01


def test_the_report_counts_starved_experts():
    statistics, params = _collect(_by_slots), {"experts": _EXPERTS}
    with pytest.warns(UserWarning, match="met no tokens"):
        result = js.WandaSearcher(_RULES).search(params, statistics)
    report = js.calibration_report(params, result, statistics)
    (leaf,) = report
    assert (leaf.starved, leaf.tokens) == (1, 400)
    assert "2:4 along axis 1; 1 without tokens: by magnitude" in str(report)


def test_no_warning_where_every_expert_met_tokens():
    params, expert_of = {"experts": _EXPERTS}, np.arange(400) % 4
    statistics = js.collect_statistics(
        _by_slots, params, [(_TOKENS, expert_of)], plan=_RULES
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        js.WandaSearcher(_RULES).search(params, statistics)


def test_a_few_inputs_that_are_zero_by_chance_are_a_token():
    experts = {"experts": _EXPERTS[:, :4]}
    fn = lambda params, x: jnp.einsum("etd,edf->etf", x, params["experts"])
    x = np.maximum(_RANDOM.normal(size=(4, 90, 4)), 0).astype(np.float32)
    (statistics,) = js.collect_statistics(fn, experts, [x], plan=_RULES).values()
    np.testing.assert_array_equal(statistics.tokens, [90] * 4)
    squares = (x.astype(np.float64) ** 2).mean(1)
    np.testing.assert_allclose(statistics.mean_square, squares, rtol=1e-5)
