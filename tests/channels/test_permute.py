"""`permute_channels`: what it keeps, what it leaves as it is, what it refuses."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st

import jaxsparse as js
from jaxsparse._channels import permutation_search
from jaxsparse._channels.consumers import find_consumers
from jaxsparse._channels.same_outputs import outputs_of
from jaxsparse._channels.verify_permutations import verify_permutations
from tests.channels.handmade_groups import (
    FIXED,
    MODELS,
    member,
    mlp,
    mlp_groups,
    random_params,
)
from tests.thorough import thorough


INPUTS = jax.random.normal(jax.random.key(9), (8, 16))


@pytest.fixture(autouse=True)
def short_search(monkeypatch):
    monkeypatch.setattr(permutation_search, "_ANNEALED_STEPS", 20)


def setting(name, pattern="2:4", seed=0):
    """A function, its parameters, their plan and the channel groups."""
    fn, shapes, groups = MODELS[name]
    params = random_params(shapes, seed)
    plan = js.plan_sparsity(params, pattern, fn=fn, args=(INPUTS,), dense_head=False)
    return fn, params, plan, groups()


@cache
def permuted(name):
    fn, params, plan, groups = setting(name)
    result = js.permute_channels(params, plan, fn, (INPUTS,), groups=groups)
    return fn, params, plan, result


def kept(scores, params, plan, path):
    """The share of the scores of a leaf that the best masks keep."""
    mask = js.create_masks(params, plan, scores=scores)[path]
    return float(jnp.sum(scores[path], where=mask) / jnp.sum(scores[path]))


def magnitudes(params):
    return jax.tree.map(jnp.abs, params)


@pytest.mark.sweep(keep=["mlp"])
@pytest.mark.parametrize(
    ("name", "number", "consumer"),
    [("mlp", 1, "down"), ("stacked", 0, "down"), ("heads", 0, "out")],
)
def test_masks_keep_more_and_the_function_is_the_same(name, number, consumer):
    fn, params, plan, result = permuted(name)
    outputs, others = fn(params, INPUTS), fn(result.params, INPUTS)
    assert jnp.allclose(outputs, others, rtol=1e-5, atol=1e-5 * jnp.abs(outputs).max())
    gain = result.gains[number]
    assert gain.leaves == (consumer,)
    before = kept(magnitudes(params), params, plan, consumer)
    after = kept(magnitudes(result.params), result.params, plan, consumer)
    assert (gain.before, gain.after) == pytest.approx((before, after), abs=1e-5)
    assert 0.3 < gain.efficacy <= 1
    assert gain.rows > gain.after > gain.before + 0.01


@pytest.mark.parametrize("name", MODELS)
def test_the_old_order_comes_back_exactly(name):
    _, params, _, result = permuted(name)
    assert not jax.tree.all(jax.tree.map(jnp.array_equal, params, result.params))
    back = result.invert(result.params)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, params, back))
    again = result.permute(params)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, result.params, again))


@pytest.mark.parametrize("name", MODELS)
def test_permutations_say_which_old_channel_is_where(name):
    _, params, _, result = permuted(name)
    first = {"mlp": "up", "stacked": "up", "heads": "value"}[name]
    old, new = np.asarray(params[first]), np.asarray(result.params[first])
    (order,) = result.permutations.values()
    for index in np.ndindex(order.shape[:-1]):
        if name == "stacked":
            assert np.array_equal(new[index], old[index][:, order[index]])
        elif name == "heads":
            start = 16 * index[0]
            own = slice(start, start + 16)
            assert np.array_equal(new[:, own], old[:, start + order[index]])
        else:
            assert np.array_equal(new, old[:, order])


@pytest.mark.sweep
@pytest.mark.parametrize("name", MODELS)
def test_statistics_move_to_where_they_would_be_collected(name):
    fn, params, plan, result = permuted(name)
    collect = lambda params: js.collect_statistics(fn, params, [INPUTS], plan=plan)
    squares = lambda statistics: {
        path: replace(leaf, moments=leaf.mean_square)
        for path, leaf in statistics.items()
    }
    old, new = collect(params), collect(result.params)
    for before, after in ((old, new), (squares(old), squares(new))):
        moved = result.permute(before)
        assert moved.keys() == after.keys()
        for path, expected in after.items():
            np.testing.assert_allclose(
                moved[path].moments, expected.moments, rtol=1e-3, atol=1e-4
            )
            assert np.array_equal(moved[path].tokens, expected.tokens)
        back = result.invert(moved)
        assert jax.tree.all(jax.tree.map(jnp.array_equal, before, back))


@pytest.mark.sweep(keep=["True"])
@pytest.mark.parametrize("packed", [False, True])
def test_masks_move_with_their_weights(packed):
    _, params, plan, result = permuted("mlp")
    masks = js.create_masks(params, plan, packed=packed)
    moved = result.permute(masks)
    pruned = result.permute(js.mask_params(params, masks))
    assert jax.tree.all(
        jax.tree.map(jnp.array_equal, js.mask_params(result.params, moved), pruned)
    )
    assert moved["up"].dtype == masks["up"].dtype
    assert moved["bias"] is None
    assert jax.tree.all(jax.tree.map(jnp.array_equal, masks, result.invert(moved)))


@pytest.mark.sweep
def test_training_goes_on_as_if_nothing_had_moved():
    fn, params, plan, result = permuted("mlp")
    masks = js.create_masks(params, plan)
    tx = js.wrap_optimizer(optax.sgd(1e-2, momentum=0.9), masks=masks)
    grads = jax.grad(lambda params: jnp.mean(fn(params, INPUTS) ** 2))

    def step(params, state):
        updates, state = tx.update(grads(params), state, params)
        return optax.apply_updates(params, updates), state

    old = step(js.mask_params(params, masks), tx.init(params))
    new = step(*result.permute(old))
    expected = result.permute(step(*old))
    for x, y in zip(jax.tree.leaves(new), jax.tree.leaves(expected), strict=True):
        assert jnp.allclose(x, y, rtol=1e-4, atol=1e-5)


def test_scores_of_the_caller_decide():
    fn, params, plan, groups = setting("mlp")
    scores = js.random_scores(params, jax.random.key(1))
    result = js.permute_channels(
        params, plan, fn, (INPUTS,), groups=groups, scores=scores
    )
    gain = result.gains[1]
    before = kept(scores, params, plan, "down")
    after = kept(result.permute(scores), result.params, plan, "down")
    assert (gain.before, gain.after) == pytest.approx((before, after), abs=1e-5)
    assert gain.after > gain.before


def test_a_permuted_model_never_gets_worse():
    fn, _, plan, result = permuted("heads")
    again = js.permute_channels(
        result.params, plan, fn, (INPUTS,), groups=result.groups, key=jax.random.key(5)
    )
    assert again.gains[0].before == pytest.approx(result.gains[0].after)
    assert again.gains[0].after >= again.gains[0].before


@thorough(60)
@given(seed=st.integers(0, 99), pattern=st.sampled_from(["2:4", "1:4", "4:8"]))
def test_kept_never_falls_and_invert_is_exact(seed, pattern):
    fn, params, plan, groups = setting("heads", pattern, seed)
    result = js.permute_channels(params, plan, fn, (INPUTS,), groups=groups)
    before = kept(magnitudes(params), params, plan, "out")
    after = kept(magnitudes(result.params), result.params, plan, "out")
    assert after >= before - 1e-6
    back = result.invert(result.params)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, params, back))


def test_the_table_says_what_is_gained_and_what_is_not_permuted():
    *_, result = permuted("mlp")
    gain = result.gains[1]
    header, fixed, moved = str(result).splitlines()
    assert header.split() == [
        "group",
        "channels",
        "consumers",
        "kept",
        "permuted",
        "efficacy",
    ]
    assert fixed.split(maxsplit=3) == ["0", "16", "up", f"not permuted: {FIXED}"]
    assert moved.split() == [
        "1",
        "64",
        "down",
        f"{100 * gain.before:.1f}",
        "%",
        f"{100 * gain.after:.1f}",
        "%",
        f"{100 * gain.efficacy:.1f}",
        "%",
    ]


def test_numpy_parameters_stay_numpy():
    fn, params, plan, groups = setting("mlp")
    params = jax.tree.map(np.asarray, params)
    result = js.permute_channels(params, plan, fn, (INPUTS,), groups=groups)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(result.params))


@pytest.mark.parametrize("wrong", range(4))
def test_a_group_that_changes_the_function_is_named(wrong):
    fn, params, _, groups = setting("mlp")
    right, orders = groups[1], np.random.default_rng(0)
    without_bias = js.ChannelGroup(64, (), right.members[::2], "", "")
    groups = [without_bias if i == wrong else right for i in range(4)]
    permutations = {
        i: orders.permutation(64).astype(np.int32) for i in range(len(groups))
    }
    outputs = outputs_of(fn, params, (INPUTS,))
    with pytest.raises(
        ValueError, match=rf"group {wrong} permuted: up\[1, 0:64\], down"
    ):
        verify_permutations(outputs, params, groups, permutations)
    del permutations[wrong]
    verify_permutations(outputs, params, groups, permutations)


def test_nothing_to_permute_is_an_error_with_the_reasons():
    fn, params, plan, groups = setting("mlp")
    with pytest.raises(ValueError, match=f"group 0: {FIXED}"):
        js.permute_channels(
            params, plan, fn, (INPUTS,), groups=js.ChannelGroups(groups[:1])
        )
    plan = js.plan_sparsity(
        params, [js.Rule("up", "2:4"), js.Rule(".*", None)], fn=fn, args=(INPUTS,)
    )
    with pytest.raises(ValueError, match="no n:m groups of the plan lie along"):
        js.permute_channels(
            params, plan, fn, (INPUTS,), groups=js.ChannelGroups(groups[1:])
        )


def down(view, channel, start=0):
    """The channels of `down`, of 64 x 32, along an axis of a view of it."""
    whole = member("down", (64, 32), 0, "input", view, channel)
    return whole._replace(slices=((start, start + 32 if start else 64), (0, 32)))


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([down((2, 32, 32), 1)], ""),
        ([down((32, 32), 0, 16)], ""),
        ([down((32, 2, 32), 0)], None),  # 2 of 4 neighbours are other channels
        ([down((16, 4, 32), 0)], None),  # whole groups move
        ([down((32, 32), 0, 14)], None),
        ([down((32, 2, 32), 0), down((2, 32, 32), 1)], "hold other channels too"),
        ([down((16, 4, 32), 0), down((4, 16, 32), 1)], ""),
    ],
)
def test_groups_must_lie_along_channels(members, reason):
    _, _, plan, _ = setting("mlp")
    size = members[0].view[members[0].channel]
    found = find_consumers(js.ChannelGroup(size, (), tuple(members), "", ""), plan)
    if reason is None:
        assert found is None
    else:
        assert found.members == (members[-1],)
        assert reason in found.reason if reason else found.reason == ""


def test_consumers_need_one_pattern_along_inputs():
    params = random_params({"a": (16, 16), "b": (16, 16)})
    members = tuple(member(path, (16, 16), 0, "input") for path in params)
    group = js.ChannelGroup(16, (), members, "", "")
    plan = lambda *patterns: js.plan_sparsity(
        params,
        [js.Rule(path, x, axis=0) for path, x in zip("ab", patterns, strict=True)],
    )
    assert find_consumers(group, plan("1:4", "1:4")).reason == ""
    mixed = find_consumers(group, plan("1:4", "2:4"))
    assert mixed.reason == "its consumers are pruned 1:4 and 2:4"
    both = find_consumers(group, plan(*[js.NM(2, 4, transposable=True)] * 2))
    assert both.reason == "transposable patterns have groups along outputs too"
    assert find_consumers(group, plan("4:4", "2:4")).paths == ("b",)


def test_errors_name_the_leaf():
    fn, params, plan, groups = setting("mlp")
    permute = lambda params=params, plan=plan, args=(INPUTS,), **options: (
        js.permute_channels(params, plan, fn, args, groups=groups, **options)
    )
    with pytest.raises(ValueError, match=r"leaf 'down' .* needs real scores"):
        permute(scores={"up": params["up"]})
    infinite = {**params, "down": params["down"].at[0, 0].set(jnp.inf)}
    with pytest.raises(ValueError, match=r"leaf 'down' .* not finite"):
        permute(scores=infinite)
    with pytest.raises(TypeError, match="args hold a ShapeDtypeStruct"):
        permute(args=(jax.ShapeDtypeStruct((8, 16), jnp.float32),))
    with pytest.raises(TypeError, match="which has no values"):
        permute(params=jax.eval_shape(lambda: params))
    with pytest.raises(ValueError, match=r"the leaf 'down' up to \(64, 32\)"):
        permute(
            params={**params, "down": params["down"][:32]},
            plan=[js.Rule("down", "2:4", axis=0)],
        )


def test_factored_moments_are_refused():
    *_, result = permuted("mlp")
    state = optax.adafactor(1e-3, min_dim_size_to_factor=8).init(result.params)
    with pytest.raises(ValueError, match=r"belongs to leaf 'down' .* another layout"):
        result.permute(state)


def test_an_mlp_of_bfloat16_is_verified_by_its_own_digits():
    params = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16), random_params(MODELS["mlp"][1])
    )
    fn = lambda params, x: mlp(params, x.astype(jnp.bfloat16))
    plan = js.plan_sparsity(params, "2:4", fn=fn, args=(INPUTS,), dense_head=False)
    result = js.permute_channels(params, plan, fn, (INPUTS,), groups=mlp_groups())
    assert result.params["down"].dtype == jnp.bfloat16
    assert result.gains[1].after > result.gains[1].before
