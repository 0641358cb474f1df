"""Schedules, and the walks that masks make along them."""

from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse as js
from jaxsparse._masks.mask_search import kept_count
from tests import reference
from tests.training.masked import PARAMS, make_step, oracle, params, unpacked


@pytest.mark.parametrize("step", [0, 10, 11, 35, 60, 99, 110, 1000])
def test_the_cubic_schedule_is_zhu_and_guptas(step):
    t = min(max(Fraction(step - 10, 100), Fraction(0)), Fraction(1))
    expected = float(1 - (1 - t) ** 3)
    schedule = js.cubic_schedule(10, 110)
    np.testing.assert_allclose(schedule(step), expected, atol=1e-6)
    np.testing.assert_allclose(jax.jit(schedule)(jnp.int32(step)), expected, atol=1e-6)


@pytest.mark.parametrize(("step", "end"), [(-1, None), (10, 9)])
def test_an_end_before_the_step_is_refused(step, end):
    with pytest.raises(ValueError, match=r"got -1" if end is None else r"got 9"):
        js.one_shot_schedule(step, end=end)


@pytest.mark.parametrize(("start", "end"), [(-1, 10), (10, 10), (20, 10)])
def test_a_schedule_that_goes_nowhere_is_refused(start, end):
    with pytest.raises(ValueError, match=f"got start={start}, end={end}"):
        js.cubic_schedule(start, end)


@pytest.mark.parametrize(
    ("total", "target", "progress", "expected"),
    [
        (4, 2, 0.0, 4),
        (4, 2, 0.24, 4),
        (4, 2, 0.26, 3),
        (4, 2, 0.74, 3),
        (4, 2, 0.76, 2),
        (4, 2, 1.0, 2),
        (4, 2, 7.0, 2),
        (4, 2, -1.0, 4),
        (1000, 100, 0.5, 550),
        (2**24 + 3, 2, 1.0, 2),  # one more than a float32 can count to
        (2**31 - 1, 1, 1.0, 1),
    ],
)
def test_what_is_kept_on_the_way(total, target, progress, expected):
    kept = jax.jit(kept_count, static_argnums=(0, 1))(
        total, target, jnp.float32(progress)
    )
    assert int(kept) == expected


def test_gradual_nm_closes_one_weight_of_each_group_at_a_time():
    """2:8 along a straight line: progress k/12, closed round(6 k / 12)."""
    schedule = optax.linear_schedule(0.0, 1.0, 12, 4)
    tx = js.wrap_optimizer(optax.adamw(0.05), "2:8", schedule=schedule, every=2)
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(make_step(tx), n=1))
    tree, state = params(), tx.init(params())
    before, counts = np.ones((16, 8), bool), []
    for index in range(200):
        start = tree
        tree, state = step(tree, state, index)
        mask = unpacked(js.get_masks(state), "a")
        counts.append(set(reference.n_per_group(mask, 8, 0).tolist()))
        assert not (mask & ~before).any()  # each mask lies within the one before
        if (mask != before).any():  # and keeps what is largest when the step begins
            (n,) = counts[-1]
            np.testing.assert_array_equal(
                mask, oracle(np.where(before, start["a"]["kernel"], 0), n, 8)
            )
        np.testing.assert_array_equal(np.asarray(tree["a"]["kernel"]) != 0, mask)
        before = mask
    # At step 4 + k it is k/12; looked at on even steps. 8 - round(k/2) for even k.
    expected = [8] * 6 + [7, 7, 6, 6, 5, 5, 4, 4, 3, 3] + [2] * 184
    assert counts == [{n} for n in expected]


def test_the_walk_of_an_unstructured_pattern():
    """Of 128 weights 64 are pruned on a line of 8 steps: 8 a step."""
    rules = [js.Rule("a/.*", js.Unstructured(0.5))]
    schedule = optax.linear_schedule(0.0, 1.0, 8)
    tx = js.wrap_optimizer(optax.sgd(0.05), rules, schedule=schedule)
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(make_step(tx), n=1))
    tree, state = params(), tx.init(params())
    before = np.ones((16, 8), bool)
    for index in range(200):
        start = np.asarray(tree["a"]["kernel"])
        tree, state = step(tree, state, index)
        mask = unpacked(js.get_masks(state), "a")
        assert mask.sum() == max(128 - 8 * index, 64)
        assert not (mask & ~before).any()
        if index <= 8:
            magnitudes = np.where(before, np.abs(start), -1).ravel()
            order = np.argsort(-magnitudes, kind="stable")[: mask.sum()]
            np.testing.assert_array_equal(np.flatnonzero(mask), np.sort(order))
        np.testing.assert_array_equal(np.asarray(tree["a"]["kernel"]) != 0, mask)
        before = mask
    js.check_sparsity(tree, rules)


@pytest.mark.parametrize("pattern", ["2:4", js.Unstructured(0.5)])
def test_masks_that_are_finer_than_the_plan_are_not_opened(pattern):
    """One of four is kept at first, which neither half nor an end of pruning opens."""
    first = reference.best_mask_by_rank(PARAMS["a"]["kernel"], 1, 4, 0)
    rules = [js.Rule("a/.*", pattern)]
    masks = {"a": {"kernel": first}, "b": {"kernel": None, "bias": None}}
    there_and_back = lambda step: jnp.where(step == 2, 1.0, 0.0)
    tx = js.wrap_optimizer(optax.sgd(0.1), rules, masks=masks, schedule=there_and_back)
    tree, state = params(), tx.init(params())
    step = jax.jit(make_step(tx))
    for index in range(5):
        tree, state = step(tree, state, index)
        np.testing.assert_array_equal(unpacked(js.get_masks(state), "a"), first)


@pytest.mark.sweep(keep=["2:4-float32", "1:8-bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "pattern", ["2:4", "1:8", js.Channel(0.5), js.Block((4, 4), 0.5)]
)
def test_a_walk_under_strict_promotion(pattern, dtype):
    tree = {"kernel": jnp.asarray(PARAMS["a"]["kernel"], dtype)}
    schedule = js.cubic_schedule(0, 2)
    tx = js.wrap_optimizer(optax.sgd(0.1), pattern, schedule=schedule)
    with jax.numpy_dtype_promotion("strict"):
        state = tx.init(tree)
        for _ in range(3):
            updates, state = jax.jit(tx.update)(tree, state, tree)
            tree = optax.apply_updates(tree, updates)
    js.check_sparsity(tree, pattern)


@pytest.mark.sweep
def test_a_threshold_across_leaves_reaches_its_target_where_no_leaf_moves_alone():
    """Ten leaves of 4 x 16, 90 %: each leaf rounds early, their sum does not."""
    names = [f"Dense_{i}" for i in range(10)]
    tree = {
        name: {"kernel": jnp.asarray(PARAMS["a"]["kernel"][:8] + i)}
        for i, name in enumerate(names)
    }
    plan = js.plan_sparsity(
        tree, js.Unstructured(0.9, across_leaves=True), dense_head=False
    )
    schedule = lambda step: jnp.asarray([0.0, 0.999, 1.0])[jnp.minimum(step, 2)]
    tx = js.wrap_optimizer(optax.sgd(0.0), plan, schedule=schedule)
    state, counts = tx.init(tree), []
    for _ in range(3):
        updates, state = jax.jit(tx.update)(tree, state, tree)
        tree = optax.apply_updates(tree, updates)
        counts.append(sum(int((x["kernel"] != 0).sum()) for x in tree.values()))
    # Of 640 weights 576 are pruned at the end, round(575.424) = 575 before.
    assert counts == [640, 65, 64]
    js.check_sparsity(tree, plan)


@pytest.mark.parametrize(
    "pattern", ["2:4", js.Unstructured(0.5), js.PerOutput(0.5), js.Block((4, 4), 0.5)]
)
def test_a_step_that_was_crossed_before_a_restart_still_prunes(pattern):
    """Looked at every 100 steps until 150, then every 10: due at 120, pruned at 150."""
    rules = [js.Rule("a/.*", pattern)]
    schedule = js.one_shot_schedule(120)
    before = js.wrap_optimizer(optax.sgd(0.01), rules, schedule=schedule, every=100)
    state = before.init(params())._replace(count=jnp.asarray(150, jnp.int32))
    after = js.wrap_optimizer(optax.sgd(0.01), rules, schedule=schedule, every=10)
    step, tree = jax.jit(make_step(after)), params()
    tree, state = step(tree, state, 0)
    assert (np.asarray(tree["a"]["kernel"]) == 0).mean() == 0.5
    js.check_sparsity(tree, rules)
    masks = unpacked(js.get_masks(state), "a")
    for index in range(1, 21):  # and once is enough
        tree, state = step(tree, state, index)
        np.testing.assert_array_equal(unpacked(js.get_masks(state), "a"), masks)


def test_a_state_of_a_denser_plan_is_pruned_on_or_refused():
    rules = lambda pattern: [js.Rule("a/.*", pattern)]
    state = js.wrap_optimizer(optax.sgd(0.01), rules("2:4")).init(params())
    on = js.wrap_optimizer(
        optax.sgd(0.01), rules("1:4"), schedule=optax.constant_schedule(1.0)
    )
    tree, state_on = jax.jit(make_step(on))(params(), state, 0)
    np.testing.assert_array_equal(
        unpacked(js.get_masks(state_on), "a"), oracle(PARAMS["a"]["kernel"], 1, 4)
    )
    js.check_sparsity(tree, rules("1:4"))
    fixed = js.wrap_optimizer(optax.sgd(0.01), rules("1:4"))
    said = (
        r"'a/kernel' of shape \(16, 8\) keeps 64 weights, and 1:4 along axis 0 keeps 32"
    )
    with pytest.raises(ValueError, match=said):
        fixed.update(params(), state, params())


def test_masks_of_another_pattern_with_as_many_weights_take_the_plans():
    """Whole groups of four at first, every other one: half of the weights, not 2:4."""
    groups = np.arange(16)[:, None] // 4 % 2 == 0
    first = np.broadcast_to(groups, (16, 8))
    masks = {"a": {"kernel": first}, "b": {"kernel": None, "bias": None}}
    rules = [js.Rule("a/.*", "2:4")]
    schedule = js.one_shot_schedule(3)
    tx = js.wrap_optimizer(optax.sgd(0.01), rules, masks=masks, schedule=schedule)
    step, tree, state = jax.jit(make_step(tx)), params(), tx.init(params())
    for index in range(5):
        tree, state = step(tree, state, index)
        kept = reference.n_per_group(unpacked(js.get_masks(state), "a"), 4, 0)
        np.testing.assert_array_equal(kept.max(), 4 if index < 3 else 2)
    js.check_sparsity(tree, rules)
