"""Plots draw the numbers of reports, masks and metrics."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse import plots
from tests.reports.test_report import planned, tree


def test_plots_draw_what_they_are_given():
    params, plan = tree(), planned()
    ax = plots.plot_leaves(js.sparsity_report(params, plan))
    assert [x.get_text() for x in ax.get_yticklabels()] == ["[b]/kernel", "a/kernel"]
    kept, zeros = ax.get_lines()
    np.testing.assert_array_equal(zeros.get_xdata(), [50, 75])
    rows = np.arange(1, 129).reshape(16, 8).sum(1)
    np.testing.assert_allclose(kept.get_xdata()[1], 100 * rows[3::4].sum() / rows.sum())

    masks = js.create_masks(params, plan, packed=True)
    weight, mask = params["a"]["kernel"], masks["a"]["kernel"]
    ax = plots.plot_mask(weight, mask, leaf=plan["a/kernel"], corner=6)
    drawn = ax.images[0].get_array()
    assert drawn.shape == (6, 6)
    np.testing.assert_array_equal(drawn, np.arange(6)[:, None] % 4 == np.full(6, 3))
    small = js.compress(weight, "1:4")
    again = plots.plot_mask(small, ax=ax)  # what is not zero, into the same axes
    assert again is ax
    wide = ax.images[1].get_array()
    np.testing.assert_array_equal(wide, np.arange(16)[:, None] % 4 == np.full(8, 3))

    history = {"flip_rate": jnp.array([0.0, 0.5, 0.25])}
    one_by_one = [{"flip_rate": rate} for rate in history["flip_rate"]]
    for series in (history, one_by_one):
        (line,) = plots.plot_flip_rate(series, steps=[0, 10, 20]).get_lines()
        np.testing.assert_array_equal(line.get_xydata(), [[0, 0], [10, 50], [20, 25]])


def test_long_paths_leave_room_for_the_points():
    path = "transformer/blocks/layer_0/attention_with_a_long_name/query_and_key/kernel"
    report = js.sparsity_report({path: jnp.ones((16, 8))}, [js.Rule(path, "2:4")])
    ax = plots.plot_leaves(report)
    figure = ax.figure
    figure.draw_without_rendering()
    inches = figure.dpi_scale_trans.inverted()
    assert ax.get_window_extent().transformed(inches).width > 2.5
    for text in (*ax.get_legend().get_texts(), *ax.get_yticklabels()):
        box = text.get_window_extent().transformed(inches)
        assert box.x0 >= 0
        assert box.x1 <= figure.get_figwidth()


def test_one_flip_rate_is_seen():
    ax = plots.plot_flip_rate([{"flip_rate": 0.5}])
    assert ax.get_lines()[0].get_marker() == "o"


def test_plots_say_what_they_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    with pytest.raises(ImportError, match="python -m pip install matplotlib"):
        plots.plot_flip_rate([{"flip_rate": 0.5}])


def test_plots_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="none of the 1 leaves"):
        plots.plot_leaves(js.sparsity_report({"b": jnp.ones(3)}, {"b": None}))
    with pytest.raises(ValueError, match=r"mask of shape \(3,\)"):
        plots.plot_mask(jnp.ones(4), np.ones(3, bool))
    with pytest.raises(ValueError, match=r"leaf 'a/kernel' is for shape \(16, 8\)"):
        plots.plot_mask(jnp.ones((8, 8)), leaf=planned()["a/kernel"])
    with pytest.raises(ValueError, match="no flip rate among the metrics"):
        plots.plot_flip_rate([{"sparsity": 0.5}])
    with pytest.raises(ValueError, match="one step for each"):
        plots.plot_flip_rate([{"flip_rate": 0.5}], steps=[1, 2])
