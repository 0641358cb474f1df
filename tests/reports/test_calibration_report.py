"""The error of outputs that a report states is that of the outputs themselves."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from tests.calibration.sparsegpt_oracle import correlated


def relative_error(x, before, after):
    before, after = (np.asarray(w, np.float64) for w in (before, after))
    return np.linalg.norm(x @ (before - after)) / np.linalg.norm(x @ before)


@pytest.mark.sweep
def test_errors_are_those_of_the_outputs():
    rng = np.random.default_rng(0)
    draw = lambda *sizes: rng.normal(size=sizes).astype(np.float32)
    params = {"kernel": draw(16, 8), "experts": draw(3, 16, 8)}
    x = correlated(rng, 90, 16)
    apart = x * np.arange(1.0, 4.0, dtype=np.float32)[:, None, None]

    def fn(params, x):
        scaled = x * jnp.arange(1.0, 4.0)[:, None, None]  # each expert sees its own
        return x @ params["kernel"], jnp.einsum(
            "etd,edo->eto", scaled, params["experts"]
        )

    rules = [
        js.Rule("kernel", "2:4", axis=0),
        js.Rule("experts", "1:4", axis=1, sizes=None),
    ]
    plan = js.plan_sparsity(params, rules, fn=fn, args=(x,), dense_head=False)
    statistics = js.collect_statistics(fn, params, [x], plan=plan)
    result = js.SparseGPTSearcher(plan).search(params, statistics)
    magnitude = js.MagnitudeSearcher(plan).search(params).params
    report = js.calibration_report(params, result, statistics)
    for leaf in report:
        inputs, before = {"kernel": x, "experts": apart}[leaf.path], params[leaf.path]
        ours = relative_error(inputs, before, result.params[leaf.path])
        np.testing.assert_allclose(leaf.error, ours, rtol=1e-4)
        theirs = relative_error(inputs, before, magnitude[leaf.path])
        np.testing.assert_allclose(leaf.magnitude_error, theirs, rtol=1e-4)
    assert {leaf.path: leaf.tokens for leaf in report} == {"kernel": 90, "experts": 270}
    assert str(report).splitlines()[0].split()[2:5] == ["tokens", "error", "magnitude"]


def test_a_layer_whose_outputs_are_zero_loses_nothing():
    params = {"w": np.zeros((16, 8), np.float32)}
    rules = [js.Rule("w", "2:4", axis=0)]
    fn = lambda params, x: x @ params["w"]
    statistics = js.collect_statistics(fn, params, [np.eye(16)], plan=rules)
    with pytest.warns(UserWarning, match="ties decide"):
        result = js.MagnitudeSearcher(rules).search(params)
    (leaf,) = js.calibration_report(params, result, statistics)
    assert (leaf.error, leaf.magnitude_error) == (0, 0)
    squares = js.collect_statistics(
        fn, params, [np.eye(16)], plan=rules, statistic="mean_square"
    )
    with pytest.raises(ValueError, match="only mean squares were collected"):
        js.calibration_report(params, result, squares)
