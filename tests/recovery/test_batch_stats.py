"""Batch statistics that are measured anew, against NumPy in float64."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxsparse as js


_RANDOM = np.random.default_rng(0)
#: Batches of unequal size, whose means differ much.
_BATCHES = [
    (_RANDOM.normal(size=(size, 5)) * [1, 2, 3, 0.1, 30] + shift).astype(np.float32)
    for size, shift in ((4, 0), (8, 3), (2, -5))
]
_ALL = np.concatenate(_BATCHES).astype(np.float64)


def linen(momentum):
    layer = nn.BatchNorm(momentum=momentum)
    variables = layer.init(jax.random.key(0), _BATCHES[0], use_running_average=False)

    def update(stats, x):
        old = {"params": variables["params"], "batch_stats": stats}
        _, new = layer.apply(old, x, use_running_average=False, mutable=["batch_stats"])
        return new["batch_stats"]

    stale = jax.tree.map(lambda x: x + 7, variables["batch_stats"])
    evaluate = lambda stats, x: layer.apply(
        {"params": variables["params"], "batch_stats": stats},
        x,
        use_running_average=True,
    )
    return stale, update, evaluate


def nnx_layer(momentum):
    layer = nnx.BatchNorm(5, momentum=momentum, rngs=nnx.Rngs(0))
    graph, stats, rest = nnx.split(layer, nnx.BatchStat, ...)

    def update(stats, x):
        layer = nnx.merge(graph, stats, rest)
        layer(x, use_running_average=False)
        return nnx.state(layer, nnx.BatchStat)

    evaluate = lambda stats, x: nnx.merge(graph, stats, rest)(
        x, use_running_average=True
    )
    return jax.tree.map(lambda x: x + 7, stats), update, evaluate


def equinox_layer(mode):
    def make(momentum):
        layer = eqx.nn.BatchNorm(5, "batch", momentum=momentum, mode=mode)
        run = jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        inference = eqx.nn.inference_mode(layer)
        evaluate = jax.vmap(lambda x, state: inference(x, state)[0], in_axes=(0, None))
        return (
            eqx.nn.State(layer),
            lambda state, x: run(x, state)[1],
            lambda state, x: evaluate(x, state),
        )

    return make


_LAYERS = {
    "linen": linen,
    "nnx": nnx_layer,
    "equinox batch": equinox_layer("batch"),
    "equinox ema": equinox_layer("ema"),
}


@pytest.mark.sweep(keep=["linen-0.99"])
@pytest.mark.parametrize("momentum", [0.99, 0.5])
@pytest.mark.parametrize("make", _LAYERS.values(), ids=_LAYERS)
def test_a_layer_evaluates_with_the_moments_of_all_samples(make, momentum):
    stale, update, evaluate = make(momentum)
    stats = js.recalibrate_batch_stats(update, stale, _BATCHES)
    assert jax.tree.structure(stats) == jax.tree.structure(stale)
    x = _RANDOM.normal(size=(3, 5)).astype(np.float32) * 5
    expected = (x - _ALL.mean(0)) / np.sqrt(_ALL.var(0) + 1e-5)
    np.testing.assert_allclose(evaluate(stats, x), expected, rtol=2e-3, atol=1e-3)


class _Network(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        for width in (16, 8):
            x = nn.Dense(width, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return x


def test_a_pruned_network_evaluates_one_batch_as_in_training():
    """With one batch, its statistics are those that training mode computes."""
    model, x = _Network(), jax.random.normal(jax.random.key(0), (32, 16))
    variables = model.init(jax.random.key(1), x, train=False)
    plan = js.plan_sparsity(
        variables, "2:4", fn=lambda v, x: model.apply(v, x, train=False), args=(x,)
    )
    variables = js.mask_params(variables, js.create_masks(variables, plan))
    params = variables["params"]
    js.check_sparsity(variables, plan)

    def train(stats, x):
        variables = {"params": params, "batch_stats": stats}
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    stats = js.recalibrate_batch_stats(
        lambda stats, x: train(stats, x)[1]["batch_stats"],
        variables["batch_stats"],
        [x],
    )
    expected, _ = train(stats, x)
    evaluated = model.apply({"params": params, "batch_stats": stats}, x, train=False)
    np.testing.assert_allclose(evaluated, expected, rtol=1e-3, atol=1e-3)


def test_narrow_statistics_keep_their_dtype_and_other_leaves_are_theirs():
    def update(stats, x):
        mean = (0.75 * stats["mean"] + 0.25 * x.mean(0)).astype(jnp.bfloat16)
        return {"mean": mean, "on": stats["on"]}

    stats = {"mean": jnp.ones(5, jnp.bfloat16), "on": jnp.array(True)}
    renewed = js.recalibrate_batch_stats(update, stats, _BATCHES)
    assert renewed["mean"].dtype == jnp.bfloat16
    assert renewed["on"]
    # Each batch's mean is rounded to eight bits, and so is the result.
    rounding = 2.0**-7 * np.max([np.abs(x.mean(0)) for x in _BATCHES], axis=0)
    assert (np.abs(np.float64(renewed["mean"]) - _ALL.mean(0)) < rounding).all()


def test_what_is_no_moving_average_is_named():
    stats = {"mean": jnp.zeros(5), "u": jnp.ones(5)}
    update = lambda stats, x: {"mean": x.mean(0), "u": jnp.tanh(stats["u"] / 1e4)}
    with pytest.raises(ValueError, match=r"leaf 'u' of shape \(5,\) is no moving"):
        js.recalibrate_batch_stats(update, stats, _BATCHES)


def test_a_pass_in_evaluation_mode_is_named():
    with pytest.raises(ValueError, match=r"leaf 'mean' of .* in training mode"):
        js.recalibrate_batch_stats(
            lambda stats, _: stats, {"mean": jnp.zeros(5)}, _BATCHES
        )


def test_other_trees_and_no_batches_are_refused():
    stats = {"mean": jnp.zeros(5)}
    update = lambda stats, _: {"batch_stats": stats}
    with pytest.raises(ValueError, match="return the updated statistics alone"):
        js.recalibrate_batch_stats(update, stats, _BATCHES)
    with pytest.raises(ValueError, match="no batches"):
        js.recalibrate_batch_stats(lambda stats, _: stats, stats, [])
