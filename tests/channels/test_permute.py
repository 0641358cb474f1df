"""`permute_channels`: what it keeps, what it leaves as it is, what it refuses."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st

import jaxsparse as js
from jaxsparse._channels import permutation_search
from tests.channels.handmade_groups import (
    FIXED,
    INPUTS,
    MODELS,
    mlp,
    mlp_groups,
    permuted,
    random_params,
    setting,
)
from tests.test_compilation import programs as programs
from tests.thorough import thorough


@pytest.fixture(autouse=True)
def short_search(monkeypatch):
    monkeypatch.setattr(permutation_search, "_ANNEALED_STEPS", 20)


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


@pytest.mark.sweep(keep=["mlp"])
@pytest.mark.parametrize("name", MODELS)
def test_the_old_order_comes_back_exactly(name):
    _, params, _, result = permuted(name)
    assert not jax.tree.all(jax.tree.map(jnp.array_equal, params, result.params))
    back = result.invert(result.params)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, params, back))
    again = result.permute(params)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, result.params, again))


@pytest.mark.sweep(keep=["mlp"])
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


@pytest.mark.sweep
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


def test_an_mlp_of_bfloat16_is_verified_by_its_own_digits():
    params = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16), random_params(MODELS["mlp"][1])
    )
    fn = lambda params, x: mlp(params, x.astype(jnp.bfloat16))
    plan = js.plan_sparsity(params, "2:4", fn=fn, args=(INPUTS,), dense_head=False)
    result = js.permute_channels(params, plan, fn, (INPUTS,), groups=mlp_groups())
    assert result.params["down"].dtype == jnp.bfloat16
    assert result.gains[1].after > result.gains[1].before


def test_an_alike_block_with_other_weights_compiles_nothing(programs):
    def block(shift):
        """A function of its own, with a constant and a custom derivative rule."""
        constant = np.full(16, shift, np.float32)
        return lambda p, x: jax.nn.relu((x + constant) @ p["up"]) @ p["down"]

    rules = [js.Rule("down", "2:4", axis=0)]
    x = jax.random.normal(jax.random.key(0), (4, 16))
    for seed in (1, 2):
        keys = jax.random.split(jax.random.key(seed))
        params = {
            "up": jax.random.normal(keys[0], (16, 64)),
            "down": jax.random.normal(keys[1], (64, 32)),
        }
        fn, before = block(float(seed)), len(programs)
        result = js.permute_channels(params, rules, fn, (x,))
        compiled = len(programs) - before
        np.testing.assert_allclose(fn(params, x), fn(result.params, x), rtol=1e-4)
    assert compiled == 0
