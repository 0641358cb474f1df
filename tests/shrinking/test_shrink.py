"""Shrunk trees against NumPy in float64 on an MLP, and what can't be shrunk."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse._channels import ChannelGroups
from tests.shrinking.by_hand import group, member, ridge, second_moment


WIDTH, HIDDEN = 6, 32


def mlp(params, x):
    hidden = jax.nn.relu(x @ params["up"] + params["bias"])
    return hidden @ params["down"] + params["shift"]


def hidden_of(params, x):
    up, bias = (np.asarray(params[name], np.float64) for name in ("up", "bias"))
    return np.maximum(np.asarray(x, np.float64) @ up + bias, 0)


def draw():
    rng = np.random.default_rng(0)
    params = {
        "up": rng.normal(size=(WIDTH, HIDDEN)),
        "bias": rng.normal(size=HIDDEN),
        "down": rng.normal(size=(HIDDEN, 5)),
        "shift": rng.normal(size=5),
    }
    x = rng.normal(size=(200, WIDTH))
    return jax.tree.map(lambda x: jnp.asarray(x, np.float32), (params, x))


GROUPS = ChannelGroups(
    (
        group(
            WIDTH,
            member("up", (WIDTH, HIDDEN), 0, "input"),
            fixed="meets an input of the model",
            kept="meets an input of the model",
        ),
        group(
            HIDDEN,
            member("up", (WIDTH, HIDDEN), 1, "output"),
            member("bias", (HIDDEN,), 0, "elementwise"),
            member("down", (HIDDEN, 5), 0, "input"),
        ),
    )
)


def shrink(params, x, **options):
    return js.shrink_params(params, mlp, (x,), groups=GROUPS, **options)


def statistics_of(params, x, **options):
    plan = js.plan_sparsity(
        params, js.Unstructured(0.5), fn=mlp, args=(x,), dense_head=False
    )
    return js.collect_statistics(mlp, params, [x], plan=plan, **options)


def highest(scores, count):
    return sorted(np.argsort(-scores)[:count])


def test_magnitude_keeps_the_channels_of_large_weights_on_both_sides():
    params, x = draw()
    result = shrink(params, x, sparsity=0.5)
    up, down = (np.square(np.asarray(params[k], float)) for k in ("up", "down"))
    rows, columns = up.sum(0), down.sum(1)
    kept = highest(rows / rows.mean() + columns / columns.mean(), 16)
    assert result.channels[1].tolist() == kept
    for name, leaf in result.params.items():
        axis = {"up": 1, "bias": 0, "down": 0}.get(name)
        expected = (
            params[name] if axis is None else params[name].take(jnp.array(kept), axis)
        )
        np.testing.assert_array_equal(leaf, expected)


def test_energy_keeps_what_adds_most_to_the_outputs_and_ridge_refits_it():
    params, x = draw()
    result = shrink(
        params, x, sparsity=0.75, statistics=statistics_of(params, x), shrinkage=0.2
    )
    hidden, down = hidden_of(params, x), np.asarray(params["down"], float)
    kept = highest((hidden**2).mean(0) * (down**2).sum(1), 8)
    assert result.channels[1].tolist() == kept
    expected = ridge(down, second_moment(hidden), kept, 0.2)
    np.testing.assert_allclose(result.params["down"], expected, rtol=1e-4, atol=1e-5)


def test_a_shrinkage_of_one_refits_nothing():
    params, x = draw()
    result = shrink(
        params, x, sparsity=0.5, statistics=statistics_of(params, x), shrinkage=1.0
    )
    expected = params["down"][result.channels[1]]
    np.testing.assert_allclose(result.params["down"], expected, rtol=1e-6)


def test_half_of_the_channels_go_without_loss_if_they_repeat_the_others():
    params, x = draw()
    half = HIDDEN // 2
    rng = np.random.default_rng(1)
    scale = rng.uniform(0.1, 0.5, half).astype(np.float32)  # relu(s * x) = s * relu(x)
    for name in ("up", "bias"):
        first = params[name][..., :half]
        params[name] = jnp.concatenate([first, scale * first], axis=-1)
    down = params["down"].at[half:].set(params["down"][:half])
    params["down"] = down
    options = {"statistics": statistics_of(params, x), "shrinkage": 0.0}
    first = lambda group: np.arange(group.size) < half
    result = shrink(params, x, sparsity=0.5, scores=first, **options)
    expected = (1 + scale)[:, None] * np.asarray(down[:half])
    np.testing.assert_allclose(result.params["down"], expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        mlp(result.params, x), mlp(params, x), rtol=1e-4, atol=1e-4
    )


@pytest.mark.sweep
def test_scores_of_weights_are_added_up_and_a_function_scores_channels():
    params, x = draw()
    gradients = jax.grad(lambda params: jnp.square(mlp(params, x)).mean())(params)
    scores = js.saliency_scores(params, gradients)
    result = shrink(params, x, sparsity=0.5, scores=scores)
    up, bias, down = (np.asarray(scores[k], float) for k in ("up", "bias", "down"))
    assert result.channels[1].tolist() == highest(up.sum(0) + bias + down.sum(1), 16)
    even = lambda group: np.arange(group.size) % 2 == 0
    result = shrink(params, x, sparsity=0.5, scores=even)
    assert result.channels[1].tolist() == list(range(0, HIDDEN, 2))


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"sparsity": 0.3}, 24),  # 22.4 to a multiple of 8
        ({"sparsity": 0.3, "multiple_of": 1}, 22),
        ({"sparsity": 0.9, "multiple_of": 16}, 16),
        ({"sparsity": {"down|bias": 0.5}}, 16),
        ({"sparsity": {"bias": 0.75, ".*": 0.5}}, 8),
        ({"sizes": {"d.*": 5}}, 5),
        ({"sizes": {1: 7}}, 7),
    ],
)
def test_sizes_are_rounded_unless_they_are_given(options, size):
    params, x = draw()
    result = shrink(params, x, **options)
    assert result.params["up"].shape == (WIDTH, size)
    assert list(result.channels) == [1]


def test_the_dense_model_gives_the_same_outputs_with_what_grew_back():
    params, x = draw()
    result = shrink(params, x, sparsity=0.5, statistics=statistics_of(params, x))
    grown = js.grow_back(result, result.params)
    assert jax.tree.map(jnp.shape, grown) == jax.tree.map(jnp.shape, params)
    np.testing.assert_allclose(
        mlp(grown, x), mlp(result.params, x), rtol=1e-5, atol=1e-5
    )
    kept = np.isin(np.arange(HIDDEN), result.channels[1])
    np.testing.assert_array_equal(grown["up"], jnp.where(kept, params["up"], 0))
    assert not np.any(grown["down"][~kept])


def test_the_report_has_old_and_new_shapes_and_bytes():
    params, x = draw()
    report = shrink(params, x, sparsity=0.5).report
    rows = [line.split() for line in str(report).splitlines()]
    assert ["up", "6x32", "6x16", "outputs", "along", "axis", "1"] in rows
    assert ["down", "32x5", "16x5", "inputs", "along", "axis", "0"] in rows
    assert report.nbytes == 4 * (6 * 32 + 32 + 32 * 5 + 5)
    assert report.new_nbytes == 4 * (6 * 16 + 16 + 16 * 5 + 5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "either sparsity"),
        ({"sparsity": 0.5, "sizes": {".*": 3}}, "either sparsity"),
        ({"sparsity": 1.0}, "from 0 to less than 1, got 1.0"),
        ({"sparsity": 0.5, "multiple_of": 0}, "multiple_of must be at least 1"),
        ({"sparsity": 0.5, "multiple_of": 64}, "all channels would stay"),
        ({"sizes": {".*down": 33}}, "'up' has 32 channels along axis 1"),
        (
            {"sizes": {"head": 8}},
            "'head' is none of the 2 groups",
        ),
        ({"sizes": {0: 3}}, "6 channels of 'up': meets an input of the model"),
        ({"sizes": {7: 3}}, "7 is none of the 2 groups"),
        ({"sparsity": 0.5, "shrinkage": 2.0}, "shrinkage must be"),
        (
            {"sparsity": 0.5, "scores": {"up": jnp.ones((6, 32))}},
            "'bias' of shape (32,)",
        ),
        ({"sparsity": 0.5, "scores": lambda _: np.ones(3)}, "got shape (3,)"),
        (
            {"sparsity": 0.5, "scores": lambda g: np.full(g.size, np.nan)},
            "and 32 that are not finite",
        ),
        (
            {"sparsity": 0.5, "statistics": {}},
            "'down' of shape (32, 5) takes in channels",
        ),
        ({"sparsity": 0.5, "scores": "energy"}, "needs the statistics of 'down': pass"),
        ({"sparsity": 0.5, "scores": "taylor"}, "got 'taylor'"),
    ],
)
def test_errors_name_what_is_wrong(options, words):
    params, x = draw()
    with pytest.raises(ValueError, match=re.escape(words)):
        shrink(params, x, **options)


def test_one_argument_instead_of_a_tuple_and_shapes_instead_of_arrays_are_named():
    params, x = draw()
    with pytest.raises(TypeError, match=r"for one argument x write args=\(x,\)"):
        js.shrink_params(params, mlp, "tokens", sparsity=0.5)
    with pytest.raises(TypeError, match=r"leaf '.*' .* has no values"):
        js.shrink_params(jax.eval_shape(lambda: params), mlp, (x,), sparsity=0.5)


def test_a_group_that_cannot_be_cut_says_why():
    params, x = draw()
    only = ChannelGroups(tuple(GROUPS)[:1])
    with pytest.raises(ValueError, match="6 channels of 'up': meets an input"):
        js.shrink_params(params, mlp, (x,), sparsity=0.5, groups=only)


@pytest.mark.sweep
def test_mean_squares_alone_refit_nothing():
    params, x = draw()
    statistics = statistics_of(params, x, statistic="mean_square")
    with pytest.raises(ValueError, match="mean squares only"):
        shrink(params, x, sparsity=0.5, statistics=statistics)


def test_only_the_shapes_of_the_result_grow_back():
    params, x = draw()
    result = shrink(params, x, sparsity=0.5)
    with pytest.raises(
        ValueError, match=re.escape("'bias' has shape (32,), and (16,) in")
    ):
        js.grow_back(result, params)
