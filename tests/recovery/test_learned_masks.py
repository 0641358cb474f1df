"""Learned masks against closed forms and samples of NumPy, and what they learn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from sklearn.datasets import load_digits

import jaxsparse as js
from tests import reference


KEY = jax.random.key(5)

#: Pattern, shape and group axis of a leaf.
CASES = {
    "2:4": ((2, 4), (16, 8), 0),
    "1:4 last": ((1, 4), (8, 16), 1),
    "4:8 middle": ((4, 8), (3, 16, 2), 1),
    "3:5": ((3, 5), (20, 3), 0),
    "1:1": ((1, 1), (4, 4), 0),
}


def drawn(name, seed=0):
    """A leaf and its plan."""
    pattern, shape, axis = CASES[name]
    weight = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    params = {"w": jnp.asarray(weight), "bias": jnp.ones(3)}
    rules = [js.Rule("w", pattern, axis=axis, sizes=None), js.Rule(".*", None)]
    return params, js.plan_sparsity(params, rules)


def groups_of(x, name):
    """The weights of each group, and the logits' index of each."""
    (_, m), _, axis = CASES[name]
    moved = np.moveaxis(np.asarray(x), axis, -1)
    return moved.reshape(*moved.shape[:-1], -1, m)


def by_group(values, name):
    return np.moveaxis(np.asarray(values), CASES[name][2], -2)


@pytest.mark.sweep(keep=["2:4", "4:8"])
@pytest.mark.parametrize("name", CASES)
def test_first_logits_count_what_a_pattern_shares_with_the_prior(name):
    params, plan = drawn(name)
    (n, m), shape, axis = CASES[name]
    scores = {"w": jax.random.normal(KEY, shape)}
    prior = js.create_masks(params, plan, scores=scores)
    logits = js.init_mask_logits(params, plan, masks=prior, strength=2.0)
    assert logits["bias"] is None
    assert (logits["w"].pattern, logits["w"].axis) == (js.NM(n, m), axis)
    shared = groups_of(prior["w"], name).astype(int) @ reference.patterns(n, m).T
    expected = 0.01 * 2.0 * (shared - n / 2)
    np.testing.assert_allclose(by_group(logits["w"].values, name), expected, atol=1e-8)
    assert logits["w"].values.dtype == jnp.float32
    packed = js.create_masks(params, plan, scores=scores, packed=True)
    same = js.init_mask_logits(params, plan, masks=packed, strength=2.0)
    np.testing.assert_array_equal(same["w"].values, logits["w"].values)


@pytest.mark.sweep(keep=["2:4", "4:8"])
@pytest.mark.parametrize("name", CASES)
def test_the_prior_is_returned_at_first_and_is_by_default_that_of_magnitude(name):
    params, plan = drawn(name)
    (n, m), shape, axis = CASES[name]
    logits = js.init_mask_logits(params, plan)
    expected = reference.top_n_mask(np.asarray(params["w"]), n, m, axis)
    np.testing.assert_array_equal(js.learned_masks(logits)["w"], expected)
    prior = js.create_masks(params, plan, scores={"w": jax.random.normal(KEY, shape)})
    logits = js.init_mask_logits(params, plan, masks=prior)
    masks = js.learned_masks(logits)
    np.testing.assert_array_equal(masks["w"], prior["w"])
    assert masks["bias"] is None
    js.check_sparsity({"w": js.mask_params(params, masks)["w"]}, plan)


def test_noise_has_the_size_that_the_prior_is_measured_by():
    params = {"a": jnp.ones((256, 64)), "b": jnp.ones((256, 64))}
    rules = [js.Rule(".*", "2:4", axis=0)]
    prior = {name: jnp.arange(256)[:, None] % 4 < 2 for name in params}
    prior = {name: jnp.broadcast_to(mask, (256, 64)) for name, mask in prior.items()}
    options = {"masks": prior, "strength": 3.0}
    logits = js.init_mask_logits(params, rules, key=KEY, **options)
    plain = js.init_mask_logits(params, rules, **options)
    noise = [np.asarray(logits[x].values - plain[x].values) for x in "ab"]
    assert (noise[0] != noise[1]).any()
    np.testing.assert_allclose(noise[0].std(), 0.01, rtol=0.03)
    assert abs(noise[0].mean()) < 5 * 0.01 / np.sqrt(noise[0].size)


@pytest.mark.sweep(keep=["2:4", "4:8"])
@pytest.mark.parametrize("name", CASES)
def test_hard_masks_have_the_pattern_of_the_largest_logit(name):
    params, plan = drawn(name)
    (n, m), _, _ = CASES[name]
    logits = js.init_mask_logits(params, plan)
    values = jax.random.normal(KEY, logits["w"].values.shape)
    logits["w"] = dataclasses.replace(logits["w"], values=values)
    mask = js.learned_masks(logits)["w"]
    expected = reference.patterns(n, m)[by_group(values, name).argmax(-1)]
    assert mask.dtype == jnp.bool_
    np.testing.assert_array_equal(groups_of(mask, name), expected)


def many_groups(values, pattern, count=20_000):
    """Logits of many groups that are alike, as those of one leaf."""
    tiled = jnp.tile(jnp.asarray(values, jnp.float32), (count, 1))
    return {"w": js.MaskLogits(tiled, js.NM(*pattern), 0)}


def sampled(values, pattern, temperature, count=200_000):
    """Soft masks of one group by NumPy, in float64."""
    noise = np.random.default_rng(1).gumbel(size=(count, len(values)))
    scaled = (values + noise) / temperature
    shares = np.exp(scaled - scaled.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True) @ reference.patterns(*pattern)


@pytest.mark.parametrize("temperature", [0.01, 0.7, 4.0])
def test_soft_masks_have_the_distribution_of_gumbel_softmax(temperature):
    values = np.array([0.5, -1.0, 2.0, 0.0, 1.0, 0.3])
    logits = many_groups(values / 50, (2, 4))
    soft = js.learned_masks(logits, key=KEY, temperature=temperature, scale=50.0)["w"]
    soft = np.asarray(soft, np.float64).reshape(-1, 4)
    assert soft.min() >= 0
    assert soft.max() <= 1 + 1e-6
    np.testing.assert_allclose(soft.sum(-1), 2, rtol=1e-5)
    expected = sampled(values, (2, 4), temperature)
    bound = 5 * expected.std(0) / np.sqrt(len(soft)) + 1e-4
    assert (abs(soft.mean(0) - expected.mean(0)) < bound).all()
    np.testing.assert_allclose(soft.std(0), expected.std(0), rtol=0.05, atol=1e-3)


def test_cold_samples_are_patterns_with_the_probabilities_of_a_softmax():
    values = np.array([0.5, -1.0, 2.0])
    logits = many_groups(values, (1, 3))
    soft = js.learned_masks(logits, key=KEY, temperature=1e-4, scale=1.0)["w"]
    soft = np.asarray(soft, np.float64).reshape(-1, 3)
    expected = np.exp(values) / np.exp(values).sum()  # each pattern keeps one weight
    bound = 5 * np.sqrt(expected * (1 - expected) / len(soft))
    assert (abs(soft.mean(0) - expected) < bound).all()
    assert ((soft < 0.01) | (soft > 0.99)).mean() > 0.999


def test_each_leaf_and_each_key_has_a_sample_of_its_own():
    params = {name: jnp.arange(128.0).reshape(16, 8) for name in "ab"}
    logits = js.init_mask_logits(params, [js.Rule(".*", "2:4", axis=0)])
    first = js.learned_masks(logits, key=KEY)
    again = js.learned_masks(logits, key=KEY)
    other = js.learned_masks(logits, key=jax.random.key(6))
    np.testing.assert_array_equal(first["a"], again["a"])
    assert (first["a"] != first["b"]).any()
    assert (first["a"] != other["a"]).any()


@pytest.mark.sweep
def test_gradients_agree_with_differences_in_float64():
    params, plan = drawn("4:8 middle")
    with jax.enable_x64(True):
        logits = js.init_mask_logits(params, plan)["w"]
        weight = jnp.asarray(params["w"], jnp.float64)

        def loss(values, temperature):
            values = {"w": dataclasses.replace(logits, values=jnp.asarray(values))}
            warmth = jnp.asarray(temperature)
            masks = js.learned_masks(values, key=KEY, temperature=warmth, scale=3.0)
            return jnp.sum((weight * masks["w"]) ** 2)

        values = jax.random.normal(KEY, logits.values.shape, jnp.float64)
        check_grads(loss, (values, jnp.float64(1.5)), order=1, modes=["rev"])


@pytest.mark.sweep
def test_schedules_are_traced_and_masks_mapped_over_keys():
    params, plan = drawn("2:4")
    logits = js.init_mask_logits(params, plan)
    traced = []

    @jax.jit
    def sample(logits, key, step):
        traced.append(step)
        temperature = optax.linear_schedule(4.0, 0.05, 10)(step)
        scale = optax.linear_schedule(100.0, 500.0, 10)(step)
        masks = js.learned_masks(logits, key=key, temperature=temperature, scale=scale)
        return masks["w"]

    first, last = (sample(logits, KEY, step) for step in (0, 10))
    assert len(traced) == 1
    sharpness = [np.abs(np.asarray(mask) - 0.5).mean() for mask in (first, last)]
    assert sharpness[0] < 0.3 < 0.49 < sharpness[1]
    keys = jax.random.split(KEY, 3)
    mapped = jax.vmap(lambda key: js.learned_masks(logits, key=key)["w"])(keys)
    single = js.learned_masks(logits, key=keys[1])["w"]
    np.testing.assert_allclose(mapped[1], single, atol=1e-6)


def test_what_has_no_logits_is_refused():
    params = {"kernel": jnp.arange(512.0).reshape(64, 8)}
    init = js.init_mask_logits
    with pytest.raises(ValueError, match="group has 12,870 patterns"):
        init(params, "8:16")
    with pytest.raises(ValueError, match="n:m alone, not transposable"):
        init(params, "2:4 transposable")
    with pytest.raises(ValueError, match=r"'kernel' of shape .* has no prior mask"):
        init(params, "2:4", masks={"kernel": None})
    with pytest.raises(TypeError, match="which has no values"):
        init({"kernel": jax.ShapeDtypeStruct((16, 8), "float32")}, "2:4")
    with pytest.raises(TypeError, match="the tree that init_mask_logits returned"):
        js.learned_masks(params)


@pytest.mark.sweep(full=["1:4"])
@pytest.mark.parametrize("pattern", ["1:4", "2:4"])
def test_learned_masks_beat_the_prior_with_the_weights_frozen(pattern):
    """Digits that were not trained on, and the masks of Wanda as the prior."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x, y = jnp.asarray(images[order] / 16, jnp.float32), jnp.asarray(labels[order])
    train, held_out = (x[:1400], y[:1400]), (x[1400:], y[1400:])
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "a": jax.random.normal(keys[0], (64, 64)) / 8,
        "b": jax.random.normal(keys[1], (64, 16)) / 8,
    }
    fn = lambda params, x: jax.nn.relu(x @ params["a"]) @ params["b"]

    def loss(params, x, y):
        losses = optax.softmax_cross_entropy_with_integer_labels(fn(params, x), y)
        return losses.mean()

    def fit(loss, start, rate, steps):
        tx = optax.adam(rate)

        def step(carry, i):
            tree, state = carry
            updates, state = tx.update(jax.grad(loss)(tree, i), state)
            return (optax.apply_updates(tree, updates), state), None

        run = lambda carry: jax.lax.scan(step, carry, jnp.arange(steps))
        return jax.jit(run)((start, tx.init(start)))[0][0]

    params = fit(lambda params, _: loss(params, *train), params, 3e-3, 300)
    rules = [js.Rule(".*", pattern, sizes=None)]
    plan = js.plan_sparsity(params, rules, fn=fn, args=(x,), dense_head=False)
    statistics = js.collect_statistics(fn, params, [train[0]], plan=plan)
    prior = js.WandaSearcher(plan).search(params, statistics)
    steps = 200
    temperature = optax.linear_schedule(4.0, 0.05, steps)
    scale = optax.linear_schedule(100.0, 500.0, steps)

    def soft_loss(logits, i):
        masks = js.learned_masks(
            logits,
            key=jax.random.fold_in(keys[2], i),
            temperature=temperature(i),
            scale=scale(i),
        )
        soft = jax.tree.map(lambda w, m: w * m, params, masks)
        return loss(soft, *train) - 1e-5 * optax.tree.norm(soft, squared=True)

    logits = js.init_mask_logits(params, plan, masks=prior.masks)
    learned = js.mask_params(
        params, js.learned_masks(fit(soft_loss, logits, 5e-4, steps))
    )
    js.check_sparsity(learned, plan)
    for name, leaf in learned.items():  # no weight has moved
        assert ((leaf == params[name]) | (leaf == 0)).all()
    assert loss(learned, *held_out) < 0.7 * loss(prior.params, *held_out)
