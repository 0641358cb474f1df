"""What `permute_channels` refuses, and leaves as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse as js
from jaxsparse._channels.consumers import find_consumers
from jaxsparse._channels.same_outputs import outputs_of
from jaxsparse._channels.verify_permutations import verify_permutations
from tests.channels.handmade_groups import (
    FIXED,
    INPUTS,
    member,
    permuted,
    random_params,
    setting,
)


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


@pytest.mark.parametrize("pattern", [js.Unstructured(0.5), js.PerOutput(0.5)])
def test_other_patterns_than_n_m_are_refused_with_the_remedy(pattern):
    fn, params, _, groups = setting("mlp")
    plan = js.plan_sparsity(params, pattern, fn=fn, args=(INPUTS,), dense_head=False)
    words = rf"the plan has no n:m pattern, but {pattern}. Plan '2:4', for example"
    with pytest.raises(ValueError, match=words):
        js.permute_channels(params, plan, fn, (INPUTS,), groups=groups)
    with pytest.raises(ValueError, match=words):
        js.prune_sequentially(
            fn,
            params,
            [INPUTS * jnp.nan],  # is not read
            js.WandaSearcher(plan),
            boundaries=[".*"],
            permute=True,
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


@pytest.mark.parametrize(
    "tx",
    [
        optax.adafactor(1e-3, min_dim_size_to_factor=8),
        optax.sm3(1e-3),
        optax.scale_by_lbfgs(),
    ],
)
def test_states_of_another_layout_are_refused(tx):
    *_, result = permuted("mlp")
    state = tx.init(result.params)
    with pytest.raises(ValueError, match=r"belongs to leaf '.*' .* another layout"):
        result.permute(state)


def test_compressed_weights_are_refused():
    _, params, _, result = permuted("mlp")
    plan = [js.Rule("down", "2:4", axis=0, sizes=None)]
    pruned = js.mask_params(params, js.create_masks(params, plan))
    with pytest.raises(ValueError, match=r"belongs to leaf 'down' .* another layout"):
        result.permute(js.compress_params(pruned, plan))
