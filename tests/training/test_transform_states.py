"""The state of a masked optimizer in Optax's combinators and in frameworks; errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax import lax

import jaxsparse as js
from tests.training.masked import (
    PARAMS,
    given_masks,
    grads_at,
    make_step,
    oracle,
    params,
    unpacked,
    weights,
)


def test_steps_run_in_a_scan_over_an_ensemble_with_strict_promotion():
    tx = js.wrap_optimizer(optax.sgd(0.1, momentum=0.9), "2:4")

    def train(tree):
        def body(carry, index):
            return make_step(tx)(*carry, index), None

        (tree, state), _ = lax.scan(body, (tree, tx.init(tree)), jnp.arange(5))
        return tree, js.get_masks(state)

    ensemble = {"kernel": jnp.stack([weights(i) for i in range(3)])}
    with jax.numpy_dtype_promotion("strict"):
        trained, masks = jax.jit(jax.vmap(train))(ensemble)
    assert masks["kernel"].shape == (3, 2, 8)
    for i in range(3):
        kernel = np.asarray(trained["kernel"][i])
        np.testing.assert_array_equal(kernel != 0, oracle(weights(i)))
    pruned = js.mask_params(trained, masks)  # batched masks fit batched params
    np.testing.assert_array_equal(pruned["kernel"], trained["kernel"])


def test_init_can_be_traced_without_values():
    tx = js.wrap_optimizer(optax.adamw(0.1), "2:4")
    shapes = jax.eval_shape(tx.init, params())
    concrete = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tx.init(params())
    )
    assert shapes == concrete


def test_optax_finds_the_trees_like_params_in_the_state():
    tx = js.wrap_optimizer(optax.adamw(0.1), masks=given_masks())
    state = tx.init(params())
    marked = optax.tree.map_params(
        tx, lambda _: "param", state, transform_non_params=lambda _: "other"
    )
    assert marked.count == "other"
    assert marked.masks["a"]["kernel"] == "param"
    assert marked.inner_state[0].mu == jax.tree.map(lambda _: "param", params())


def test_masks_of_several_wrappers_come_back_as_one_tree():
    label = lambda _: {"a": "first", "b": "second"}
    tx = optax.partition(
        {
            "first": js.wrap_optimizer(optax.sgd(0.1), "2:4"),
            "second": js.wrap_optimizer(optax.adamw(0.1), "1:4"),
        },
        label,
    )
    masks = js.get_masks(tx.init(params()))
    np.testing.assert_array_equal(unpacked(masks, "a"), oracle(PARAMS["a"]["kernel"]))
    np.testing.assert_array_equal(
        unpacked(masks, "b"), oracle(PARAMS["b"]["kernel"], n=1)
    )
    assert masks["b"]["bias"] is None


def test_rules_for_the_whole_tree_plan_each_part_of_it():
    rules = [js.Rule("a/.*", "2:4"), js.Rule("b/.*", "1:4")]
    tx = optax.partition(
        {name: js.wrap_optimizer(optax.sgd(0.1), rules) for name in ("a", "b")},
        lambda _: {"a": "a", "b": "b"},
    )
    masks = js.get_masks(tx.init(params()))
    np.testing.assert_array_equal(
        unpacked(masks, "b"), oracle(PARAMS["b"]["kernel"], n=1)
    )


def test_a_train_state_stays_sparse():
    tx = js.wrap_optimizer(optax.adamw(0.1), "2:4")
    state = TrainState.create(apply_fn=None, params=params(), tx=tx)
    for index in range(3):
        state = state.apply_gradients(grads=grads_at(index, state.params))
    mask = oracle(PARAMS["a"]["kernel"])
    np.testing.assert_array_equal(np.asarray(state.params["a"]["kernel"]) != 0, mask)


class Net(nnx.Module):
    def __init__(self):
        self.a = nnx.Linear(16, 8, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.1, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.dropout(self.a(x))


@pytest.mark.sweep(keep=["[module]"])
@pytest.mark.parametrize("source", ["plan", "state", "params", "module"])
def test_an_nnx_optimizer_takes_masks_made_from_any_view_of_the_model(source):
    model = Net()
    expected = oracle(model.a.kernel[...])
    views = {
        "state": lambda: nnx.state(model),
        "params": lambda: nnx.state(model, nnx.Param),
        "module": lambda: model,
    }
    if source == "plan":
        tx = js.wrap_optimizer(optax.adamw(0.1), "2:4")
    else:
        tx = js.wrap_optimizer(optax.adamw(0.1), masks=js.create_masks(views[source]()))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(lambda m: jnp.mean(m(jnp.ones((4, 16))) ** 2))(model)
        optimizer.update(model, grads)

    for _ in range(3):
        step(model, optimizer)
    np.testing.assert_array_equal(model.a.kernel[...] != 0, expected)
    state = nnx.state(model, nnx.Param)
    masked = js.mask_params(state, js.get_masks(optimizer.opt_state))
    np.testing.assert_array_equal(masked.a.kernel[...], model.a.kernel[...])


def test_loading_dense_params_under_old_masks_is_found_out():
    """The restoring trap: masks of random weights, parameters loaded later."""
    tx = js.wrap_optimizer(optax.sgd(0.1), "2:4")
    state = TrainState.create(apply_fn=None, params=params(), tx=tx)
    loaded = jax.tree.map(lambda x: x[::-1], params())
    state = state.replace(params=loaded)
    with pytest.raises(ValueError, match="'a/kernel'"):
        js.check_sparsity(state.params)
    right = state.replace(opt_state=tx.init(loaded))
    right = right.apply_gradients(grads=grads_at(0, loaded))
    js.check_sparsity(right.params)
    mask = oracle(PARAMS["a"]["kernel"][::-1])
    np.testing.assert_array_equal(np.asarray(right.params["a"]["kernel"]) != 0, mask)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"plan": "2:4", "masks": given_masks()}, "masks alone"),
        (
            {"masks": given_masks(), "schedule": js.one_shot_schedule(1)},
            "a plan and a schedule",
        ),
        ({"plan": "2:4", "every": 0}, "at least 1, got 0"),
        ({"plan": "banana"}, "unknown pattern 'banana'"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        js.wrap_optimizer(optax.sgd(0.1), **arguments)
    with pytest.raises(ValueError, match=said):
        js.keep_params_sparse(**arguments)


def test_misuse_says_what_to_do():
    tx = js.wrap_optimizer(optax.sgd(0.1))
    state = tx.init(params())
    with pytest.raises(ValueError, match=r"update\(updates, state, params\)"):
        tx.update(params(), state)
    with pytest.raises(ValueError, match="the state of wrap_optimizer"):
        js.get_masks(optax.sgd(0.1).init(params()))
    with pytest.raises(ValueError, match="step of 0 or more"):
        js.one_shot_schedule(-1)
    with pytest.raises(ValueError, match="nothing prunable"):
        tx.init({"bias": jnp.ones(8)})
    with pytest.raises(ValueError, match="nothing prunable"):
        js.wrap_optimizer(optax.sgd(0.1), masks={"w": None}).init({"w": jnp.ones(4)})
    twice = optax.chain(js.wrap_optimizer(optax.sgd(0.1)), js.keep_params_sparse())
    with pytest.raises(ValueError, match="two wrappers prune leaf 'a/kernel'"):
        js.get_masks(twice.init(params()))
    masks = {
        "a": {"kernel": np.ones((4, 8), bool)},
        "b": {"kernel": None, "bias": None},
    }
    with pytest.raises(ValueError, match=r"\(4, 8\).*'a/kernel'.*\(16, 8\)"):
        js.wrap_optimizer(optax.sgd(0.1), masks=masks).init(params())


def test_integers_without_a_lowest_key_cannot_refresh_masks():
    params = {"layer": {"kernel": jnp.ones((16, 8), jnp.int32)}}
    rules = [js.Rule(".*", "2:4", axis=0, sizes=None)]
    schedule = js.one_shot_schedule(1)
    tx = js.wrap_optimizer(optax.identity(), rules, schedule=schedule)
    state = tx.init(params)
    with pytest.raises(TypeError, match=r"'layer/kernel' of shape \(16, 8\).*float32"):
        tx.update(params, state, params)
