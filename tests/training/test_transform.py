"""Masks in an optimizer: schedules, given masks, and what the inner one sees."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse as js
from tests import reference
from tests.training.masked import (
    PARAMS,
    given_masks,
    make_step,
    oracle,
    params,
    unpacked,
)


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
        updates, state = jax.jit(tx.update)(tree, state, tree)  # w - 1.0 * w
        tree = optax.apply_updates(tree, updates)
    last = unpacked(js.get_masks(state), "a")
    np.testing.assert_array_equal(reference.n_per_group(last, 4, 0), 2)
    assert not (last & ~first).any()
    # Of three open zeros the first two stay.
    rank = first.reshape(4, 4, 8).cumsum(1).reshape(16, 8)
    np.testing.assert_array_equal(last, first & (rank <= 2))


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
    step = jax.jit(make_step(tx))
    for index in range(4):
        start = tree
        tree, state = step(tree, state, index)
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
