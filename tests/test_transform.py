"""Masks in an optimizer: schedules, states, frameworks and errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax import lax

import jaxsparse as js
from tests import reference


def weights(seed=0, shape=(16, 8)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


PARAMS = {
    "a": {"kernel": weights(0)},
    "b": {"kernel": weights(1), "bias": weights(2, 8)},
}


def params():
    return jax.tree.map(jnp.asarray, PARAMS)


def oracle(weight, n=2, m=4):
    return reference.best_mask_by_rank(np.asarray(weight), n, m, axis=0)


def unpacked(masks, name, shape=(16, 8)):
    return reference.unpack(np.asarray(masks[name]["kernel"]), shape, axis=0)


def grads_at(index, like):
    key = jax.random.fold_in(jax.random.key(7), index)
    return optax.tree.random_like(key, like, jax.random.normal)


def make_step(tx):
    def step(params, state, index):
        updates, state = tx.update(grads_at(index, params), state, params)
        return optax.apply_updates(params, updates), state

    return step


@pytest.mark.parametrize("every", [1, 7])
@pytest.mark.parametrize("link", ["wrapper", "last"])
def test_one_compilation_crosses_a_one_shot_pruning_step(link, every):
    schedule = js.one_shot_schedule(40)
    if link == "wrapper":
        tx = js.wrap_optimizer(optax.adamw(1e-1), "2:4", schedule=schedule, every=every)
    else:
        tx = optax.chain(
            optax.adamw(1e-1),
            js.keep_params_sparse("2:4", schedule=schedule, every=every),
        )
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(make_step(tx), n=1))
    prune_at = 40 if every == 1 else 42  # the first multiple of seven from 40 on
    tree, state = params(), tx.init(params())
    previous = js.get_masks(state)
    for index in range(100):
        before = tree
        tree, state = step(tree, state, index)
        masks = js.get_masks(state)
        for name in ("a", "b"):
            old, new = unpacked(previous, name), unpacked(masks, name)
            if index < prune_at:
                assert new.all()
                assert np.asarray(tree[name]["kernel"]).all()
            elif index == prune_at:
                # By the magnitudes that the parameters have when the step begins.
                np.testing.assert_array_equal(new, oracle(before[name]["kernel"]))
                assert (new != oracle(PARAMS[name]["kernel"])).any()
            else:
                np.testing.assert_array_equal(new, old)
            if index >= prune_at:
                np.testing.assert_array_equal(
                    np.asarray(tree[name]["kernel"])[~new], 0.0
                )
        previous = masks


def test_a_one_shot_schedule_at_zero_prunes_in_init():
    tx = js.wrap_optimizer(optax.sgd(0.1), "1:4", schedule=js.one_shot_schedule(0))
    masks = js.get_masks(tx.init(params()))
    np.testing.assert_array_equal(
        unpacked(masks, "a"), oracle(PARAMS["a"]["kernel"], 1)
    )


def test_a_refresh_never_opens_a_closed_place():
    # All kept weights are driven to zero: by magnitude they tie with the pruned ones.
    progress = lambda count: jnp.where(count >= 2, 1.0, 0.5)  # 3:4, then 2:4
    tx = js.wrap_optimizer(optax.sgd(1.0), "2:4", schedule=progress)
    tree = params()
    state = tx.init(tree)
    first = unpacked(js.get_masks(state), "a")
    np.testing.assert_array_equal(first, oracle(PARAMS["a"]["kernel"], 3))
    for _ in range(3):
        updates, state = tx.update(tree, state, tree)  # w - 1.0 * w
        tree = optax.apply_updates(tree, updates)
    last = unpacked(js.get_masks(state), "a")
    np.testing.assert_array_equal(reference.n_per_group(last, 4, 0), 2)
    assert not (last & ~first).any()
    # Of three open zeros the first two stay.
    rank = first.reshape(4, 4, 8).cumsum(1).reshape(16, 8)
    np.testing.assert_array_equal(last, first & (rank <= 2))


def given_masks():
    mask = np.zeros((16, 8), bool)
    mask[::4] = True
    return {"a": {"kernel": mask}, "b": {"kernel": None, "bias": None}}


@pytest.mark.parametrize("packed", [False, True])
def test_given_masks_are_copied_and_kept(packed):
    masks = given_masks()
    mask = masks["a"]["kernel"]
    if packed:
        masks["a"]["kernel"] = jnp.asarray(reference.pack(mask, 0))
    else:
        masks["a"]["kernel"] = jnp.asarray(mask)
    tx = js.wrap_optimizer(optax.adamw(0.1), masks=masks)
    step = jax.jit(make_step(tx), donate_argnums=(0, 1))
    tree, state = params(), tx.init(params())
    for index in range(3):
        tree, state = step(tree, state, index)
    np.testing.assert_array_equal(np.asarray(tree["a"]["kernel"]) != 0, mask)
    assert np.asarray(tree["b"]["kernel"]).all()
    assert not masks["a"]["kernel"].is_deleted()


def test_given_masks_start_and_the_plan_refreshes():
    schedule = js.one_shot_schedule(2)
    masks = {
        "a": {"kernel": np.ones((16, 8), bool)},
        "b": {"kernel": np.tile([[True]] * 3 + [[False]], (4, 8)), "bias": None},
    }
    tx = js.wrap_optimizer(optax.sgd(0.1), "2:4", masks=masks, schedule=schedule)
    tree, state = params(), tx.init(params())
    for index in range(4):
        start = tree
        tree, state = make_step(tx)(tree, state, index)
        kept = unpacked(js.get_masks(state), "b")
        if index < 2:
            np.testing.assert_array_equal(kept, masks["b"]["kernel"])
        if index == 2:
            np.testing.assert_array_equal(
                kept, oracle(np.where(masks["b"]["kernel"], start["b"]["kernel"], 0))
            )


def test_the_inner_optimizer_sees_the_sparse_network():
    seen = {}

    def init(tree):
        seen["init"] = tree
        return optax.EmptyState()

    def update(updates, state, tree, **extra_args):
        seen.update(updates=updates, params=tree, extra=extra_args)
        return updates, state

    spy = optax.GradientTransformationExtraArgs(init, update)
    mask = oracle(PARAMS["a"]["kernel"])
    grads = jax.tree.map(jnp.ones_like, params())
    for mask_gradients in (True, False):
        tx = js.wrap_optimizer(spy, "2:4", mask_gradients=mask_gradients)
        tx.update(grads, tx.init(params()), params(), value=3.0)
        expected = np.where(mask, PARAMS["a"]["kernel"], 0)
        np.testing.assert_array_equal(seen["init"]["a"]["kernel"], expected)
        np.testing.assert_array_equal(seen["params"]["a"]["kernel"], expected)
        gradient = np.where(mask, 1.0, 0.0 if mask_gradients else 1.0)
        np.testing.assert_array_equal(seen["updates"]["a"]["kernel"], gradient)
        assert seen["extra"] == {"value": 3.0}


def test_extra_arguments_do_not_disturb_an_inner_optimizer_without_them():
    tx = js.wrap_optimizer(optax.sgd(0.1), "2:4")
    updates, _ = tx.update(params(), tx.init(params()), params(), value=1.0)
    assert jax.tree.structure(updates) == jax.tree.structure(params())


def test_narrow_updates_of_wide_params_still_land_on_zero():
    tx = js.wrap_optimizer(
        optax.stateless(lambda u, _: jax.tree.map(lambda x: x.astype(jnp.bfloat16), u)),
        "2:4",
    )
    updates, _ = tx.update(params(), tx.init(params()), params())
    result = optax.apply_updates(params(), updates)
    mask = oracle(PARAMS["a"]["kernel"])
    np.testing.assert_array_equal(np.asarray(result["a"]["kernel"])[~mask], 0.0)


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
            "a plan \\*and\\* a schedule",
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
    with pytest.raises(ValueError, match="made by wrap_optimizer"):
        js.get_masks(optax.sgd(0.1).init(params()))
    with pytest.raises(ValueError, match="step from 0 on"):
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
    with pytest.raises(ValueError, match=r"'a/kernel'.*\(4, 8\).*\(16, 8\)"):
        js.wrap_optimizer(optax.sgd(0.1), masks=masks).init(params())
