"""Sparse LoRA: products in float64 by NumPy, exact zeros, and training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse as js
from tests.recovery.layers import LAYERS, draw, plan_of, product


KEY = jax.random.key(1)


@pytest.fixture(scope="module")
def pruned():
    """Parameters, their plan and masks, and adapters that change them."""
    params, x = draw()
    plan = plan_of(params, x)
    adapters = js.create_adapters(params, plan, rank=3, key=KEY)
    adapters = jax.tree.map(lambda leaf: leaf + 0.1, adapters)
    return js.mask_params(params, js.create_masks(params, plan)), plan, adapters


@pytest.mark.sweep
def test_factors_have_the_axes_of_their_leaf(pruned):
    params, plan, _ = pruned
    adapters = js.create_adapters(params, plan, rank=3, key=KEY)
    assert adapters["bias"] is None
    for name, (shape, equation) in LAYERS.items():
        factors = adapters[name]
        sizes = dict(zip(equation.split("->")[1], shape, strict=True), r=3)
        a, b = equation.split("->")[0].split(",")
        assert factors.a.shape == tuple(sizes[axis] for axis in a)
        assert factors.b.shape == tuple(sizes[axis] for axis in b)
        assert (factors.shape, factors.rank) == (shape, 3)
        assert factors.nbytes == 4 * (factors.a.size + factors.b.size)
        assert factors.a.dtype == jnp.float32
        assert not factors.b.any()


def test_factors_are_drawn_by_the_number_of_inputs():
    params = {"a": jnp.ones((400, 8)), "b": jnp.ones((400, 8))}
    rules = [js.Rule(".*", "2:4", axis=0)]
    adapters = js.create_adapters(params, rules, rank=50, key=KEY)
    a, b = (adapters[name].a for name in "ab")
    assert (a != b).any()
    np.testing.assert_allclose(a.std(), 400**-0.5, rtol=0.03)
    assert abs(a.mean()) < 5 * a.std() / np.sqrt(a.size)


def test_new_adapters_change_no_bit(pruned):
    params, plan, _ = pruned
    adapters = js.create_adapters(params, plan, rank=3, key=KEY)
    masks = js.create_masks(params, plan)
    same = js.apply_adapters(params, adapters, masks)
    for name in LAYERS:
        np.testing.assert_array_equal(same[name], params[name])


@pytest.mark.parametrize("packed", [False, True])
def test_weights_are_the_masked_sum(pruned, packed):
    params, plan, adapters = pruned
    masks = js.create_masks(params, plan, packed=packed)
    kept = js.create_masks(params, plan)
    changed = js.apply_adapters(params, adapters, masks, scale=0.5)
    for name in LAYERS:
        change = 0.5 * product(name, adapters[name])
        expected = np.where(kept[name], np.asarray(params[name]) + change, 0)
        np.testing.assert_allclose(changed[name], expected, rtol=1e-5, atol=1e-6)
        assert not np.asarray(changed[name])[~np.asarray(kept[name])].any()
    assert changed["bias"] is params["bias"]


def test_without_masks_the_product_is_added_as_it_is(pruned):
    params, _, adapters = pruned
    changed = js.apply_adapters(params, adapters, None)
    for name in LAYERS:
        expected = np.asarray(params[name]) + product(name, adapters[name])
        np.testing.assert_allclose(changed[name], expected, rtol=1e-5, atol=1e-6)


def test_a_leaf_with_a_mask_alone_is_masked(pruned):
    params, plan, adapters = pruned
    dense = jax.tree.map(jnp.ones_like, params)
    masks = js.create_masks(params, plan)
    changed = js.apply_adapters(dense, {**adapters, "kernel": None}, masks)
    np.testing.assert_array_equal(changed["kernel"], masks["kernel"])


@pytest.mark.sweep
def test_training_moves_adapters_alone_and_merging_keeps_every_zero_and_bit():
    keys = jax.random.split(KEY, 3)
    draw = lambda key, *shape: jax.random.normal(key, shape, jnp.bfloat16)
    dense = {"up": draw(keys[0], 16, 32), "down": draw(keys[1], 32, 16)}
    x = draw(keys[2], 64, 16)
    fn = lambda params, x: jnp.tanh(x @ params["up"]) @ params["down"]
    plan = js.plan_sparsity(dense, "2:4", fn=fn, args=(x,), dense_head=False)
    masks = js.create_masks(dense, plan)
    pruned = js.mask_params(dense, masks)
    adapt = lambda adapters: js.apply_adapters(pruned, adapters, masks, scale=2.0)
    loss = lambda adapters: js.feature_loss(fn(adapt(adapters), x), fn(dense, x))
    tx = optax.adam(1e-2)

    @jax.jit
    def train(adapters):
        def step(carry, _):
            adapters, state = carry
            value, slope = jax.value_and_grad(loss)(adapters)
            updates, state = tx.update(slope, state, adapters)
            return (optax.apply_updates(adapters, updates), state), value

        return jax.lax.scan(step, (adapters, tx.init(adapters)), length=30)

    adapters = js.create_adapters(dense, plan, rank=2, key=KEY)
    (adapters, state), losses = train(adapters)
    assert losses[-1] < 0.8 * losses[0]
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    assert shapes(state[0].mu) == shapes(adapters)
    merged, traced = adapt(adapters), jax.jit(adapt)(adapters)
    js.check_sparsity(merged, plan)
    for name in dense:
        assert merged[name].dtype == jnp.bfloat16
        np.testing.assert_array_equal(merged[name], traced[name])
        assert (merged[name] != pruned[name]).any()


@pytest.mark.sweep
def test_adapters_are_mapped_over_an_ensemble(pruned):
    params, plan, adapters = pruned
    masks = js.create_masks(params, plan)
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), adapters)
    apply = lambda adapters: js.apply_adapters(params, adapters, masks)
    mapped = jax.jit(jax.vmap(apply))(both)
    single = apply(jax.tree.map(lambda leaf: 2 * leaf, adapters))
    for name in LAYERS:
        np.testing.assert_allclose(mapped[name][1], single[name], rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused(pruned):
    params, plan, adapters = pruned
    masks = js.create_masks(params, plan)
    with pytest.raises(ValueError, match="leaf 'kernel' has adapters and no mask"):
        js.apply_adapters(params, adapters, {**masks, "kernel": None})
    with pytest.raises(ValueError, match=r"'kernel' are for a leaf of shape \(16, 8\)"):
        js.apply_adapters({**params, "kernel": jnp.ones((8, 8))}, adapters, None)
    with pytest.raises(ValueError, match="this tree has none there"):
        js.apply_adapters({"bias": params["bias"]}, adapters, None)
    with pytest.raises(TypeError, match="give the tree that create_adapters returned"):
        js.apply_adapters(params, params, masks)
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        js.create_adapters(params, plan, rank=0, key=KEY)
    integers = {"kernel": jnp.ones((16, 8), jnp.int8)}
    with pytest.raises(TypeError, match=r"'kernel' of shape .* only floats"):
        js.create_adapters(integers, "2:4", rank=1, key=KEY)
