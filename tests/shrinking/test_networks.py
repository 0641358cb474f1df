"""Channels of whole models: what is left is what NumPy cuts by hand, and it runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from tests.shrinking import networks as nets
from tests.shrinking.by_hand import ridge, second_moment


def draw(shapes, x, seed=0):
    rng = np.random.default_rng(seed + 1)
    return nets.draw(shapes, seed), jnp.asarray(rng.normal(size=x), np.float32)


def statistics_of(fn, params, x):
    plan = js.plan_sparsity(
        params,
        [js.Rule(".*", js.Unstructured(0.5))],
        fn=fn,
        args=(x,),
        dense_head=False,
        dense_router=False,
    )
    return js.collect_statistics(fn, params, [x], plan=plan)


def of(result, path):
    """The kept channels of the only group that was cut in a leaf."""
    (number,) = [
        number
        for number in result.channels
        if any(member.path == path for member in result.groups[number].members)
    ]
    return result.channels[number]


def relative(sums):
    return sums / sums.mean(-1, keepdims=True)


def square_sums(leaf, *kept):
    """The sums of squares over all axes but some."""
    axes = tuple(axis for axis in range(leaf.ndim) if axis not in kept)
    return (np.asarray(leaf, np.float64) ** 2).sum(axes)


def same_when_grown(fn, result, x):
    """The model of the old sizes gives the same outputs."""
    run = jax.jit(fn)
    grown = js.grow_back(result, result.params)
    np.testing.assert_allclose(run(grown, x), run(result.params, x), atol=1e-4)
    return True


def test_a_convolution_loses_channels_with_its_norm():
    params, x = draw(nets.CNN, (3, 6, 6, 2))
    result = js.shrink_params(params, nets.cnn, (x,), sizes={"conv1": 8, "conv2": 12})
    score = relative(square_sums(params["conv1"], 3)) + relative(
        square_sums(params["conv2"], 2)
    )
    kept = np.sort(np.argsort(-score)[:8])
    last = of(result, "dense")
    expected = {name: np.asarray(leaf) for name, leaf in params.items()}
    for name in ("conv1", "scale", "shift", "mean", "variance"):
        expected[name] = expected[name][..., kept]
    expected["conv2"] = expected["conv2"][:, :, kept][..., last]
    expected["bias2"] = expected["bias2"][last]
    expected["dense"] = expected["dense"][last]
    jax.tree.map(np.testing.assert_array_equal, result.params, expected)
    assert last.shape == (12,)
    assert same_when_grown(nets.cnn, result, x)


@pytest.mark.sweep
def test_a_convolution_is_refitted_over_its_window():
    params, x = draw(nets.CNN, (20, 6, 6, 2))
    result = js.shrink_params(
        params,
        nets.cnn,
        (x,),
        sizes={"conv1": 8},
        statistics=statistics_of(nets.cnn, params, x),
        shrinkage=0.1,
    )
    kept = result.channels[next(iter(result.channels))]
    hidden = nets.first_convolution(params, x)
    image = np.pad(np.asarray(hidden, float), [(0, 0), (1, 1), (1, 1), (0, 0)])
    windows = np.stack(
        [image[:, i : i + 6, j : j + 6] for i in range(3) for j in range(3)], axis=3
    ).reshape(-1, 9 * 16)
    moment = windows.T @ windows / len(windows)
    rows = np.arange(9 * 16).reshape(9, 16)[:, kept].ravel()
    weight = np.asarray(params["conv2"], float).reshape(9 * 16, 24)
    expected = ridge(weight, moment, rows, 0.1).reshape(3, 3, 8, 24)
    np.testing.assert_allclose(result.params["conv2"], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.sweep
def test_heads_go_with_their_queries():
    params, x = draw(nets.ATTENTION, (2, 5, 20))
    first = lambda group: -np.arange(float(group.size))
    result = js.shrink_params(params, nets.attention, (x,), sizes={1: 2}, scores=first)
    expected = {
        "norm": params["norm"],
        **{name: params[name][:, :2] for name in ("query", "key", "value")},
        "out": params["out"][:2],
    }
    jax.tree.map(np.testing.assert_array_equal, result.params, expected)
    assert same_when_grown(nets.attention, result, x)


@pytest.mark.sweep
def test_each_head_keeps_its_own_values():
    params, x = draw(nets.ATTENTION, (160, 5, 20))
    result = js.shrink_params(
        params,
        nets.attention,
        (x,),
        sparsity={"value": 0.5},
        statistics=statistics_of(nets.attention, params, x),
    )
    kept = of(result, "value")
    assert kept.shape == (3, 8)
    assert len({tuple(row) for row in kept}) == 3
    for head, channels in enumerate(kept):
        np.testing.assert_array_equal(
            result.params["value"][:, head], params["value"][:, head][:, channels]
        )
    assert result.params["out"].shape == (3, 4, 8, 20)
    run = jax.jit(nets.attention)
    dense = run(params, x)
    unfitted = {
        **result.params,
        "out": jnp.stack([params["out"][h][:, k] for h, k in enumerate(kept)]),
    }
    error = lambda params: float(jnp.linalg.norm(run(params, x) - dense))
    assert error(result.params) < 0.9 * error(unfitted)


@pytest.mark.sweep
def test_experts_go_with_their_column_of_the_router():
    params, x = draw(nets.EXPERTS, (40, 12))
    result = js.shrink_params(params, nets.experts, (x,), sizes={"router": 4})
    kept = result.channels[next(iter(result.channels))]
    expected = {"router": params["router"][:, kept]} | {
        name: params[name][kept] for name in ("gate", "up", "down")
    }
    jax.tree.map(np.testing.assert_array_equal, result.params, expected)
    assert jax.jit(nets.experts)(result.params, x).shape == x.shape


@pytest.mark.sweep
def test_each_expert_keeps_and_refits_its_own_hidden_channels():
    params, x = draw(nets.EXPERTS, (800, 12))
    statistics = statistics_of(nets.experts, params, x)
    result = js.shrink_params(
        params, nets.experts, (x,), sizes={1: 8}, statistics=statistics, shrinkage=0.1
    )
    (kept,) = result.channels.values()
    # What an expert reads, in NumPy: the tokens whose two largest logits are its own.
    logits = np.asarray(x, float) @ np.asarray(params["router"], float)
    chosen = np.argsort(-logits, axis=-1)[:, :2]
    for expert in range(6):
        tokens = np.asarray(x, float)[(chosen == expert).any(1)]
        gate, up, down = (
            np.asarray(params[name][expert], float) for name in ("gate", "up", "down")
        )
        z = tokens @ gate
        hidden = z / (1 + np.exp(-z)) * (tokens @ up)
        energy = (hidden**2).mean(0) * (down**2).sum(1)
        np.testing.assert_array_equal(kept[expert], np.sort(np.argsort(-energy)[:8]))
        expected = ridge(down, second_moment(hidden), kept[expert], 0.1)
        np.testing.assert_allclose(
            result.params["down"][expert], expected, rtol=1e-3, atol=1e-4
        )


@pytest.mark.sweep
@pytest.mark.parametrize("refitted", [False, True], ids=["cut", "refitted"])
def test_each_layer_of_a_stack_keeps_its_own_channels(refitted):
    params, x = draw(nets.STACK, (500, 8))
    statistics = statistics_of(nets.stack, params, x) if refitted else None
    result = js.shrink_params(
        params, nets.stack, (x,), sparsity=0.5, statistics=statistics
    )
    kept = of(result, "down")
    assert kept.shape == (3, 16)
    for layer, channels in enumerate(kept):
        for name in ("up", "bias"):
            np.testing.assert_array_equal(
                result.params[name][layer], params[name][layer][..., channels]
            )
        if not refitted:
            score = relative(square_sums(params["up"], 0, 2)) + relative(
                square_sums(params["down"], 0, 1)
            )
            best = np.sort(np.argsort(-score[layer])[:16])
            np.testing.assert_array_equal(channels, best)
    assert same_when_grown(nets.stack, result, x)


@pytest.mark.sweep
def test_experts_go_by_what_they_add_to_the_outputs():
    params, x = draw(nets.EXPERTS, (400, 12))
    statistics = statistics_of(nets.experts, params, x)
    result = js.shrink_params(
        params, nets.experts, (x,), sizes={"router": 4}, statistics=statistics
    )
    (kept,) = result.channels.values()
    score = 0
    for name in ("gate", "up", "down"):
        leaf, weight = statistics[name], np.asarray(params[name], float)
        squares = np.asarray(leaf.mean_square, float)[:, :, None]
        energy = np.asarray(leaf.tokens, float) * (squares * weight**2).sum((1, 2))
        score = score + relative(energy)
    np.testing.assert_array_equal(kept, np.sort(np.argsort(-score)[:4]))


@pytest.mark.sweep
def test_a_smaller_model_is_pruned_to_2_4():
    params, x = draw(nets.CNN, (3, 6, 6, 2))
    small = js.shrink_params(params, nets.cnn, (x,), sparsity={"conv1": 0.5}).params
    rules = [js.Rule("conv2", "2:4", sizes=None)]
    plan = js.plan_sparsity(small, rules, fn=nets.cnn, args=(x,))
    masked = js.mask_params(small, js.create_masks(small, plan))
    js.check_sparsity(masked, plan)
    assert nets.cnn(masked, x).shape == (3, 5)
