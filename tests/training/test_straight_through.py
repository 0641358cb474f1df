"""Straight-through gradients and SR-STE, against derivations by hand."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxsparse as js
from tests import reference
from tests.training.masked import (
    PARAMS,
    grads_at,
    oracle,
    params,
    unpacked,
    weights,
)


RULES = [js.Rule("a/.*", "2:4"), js.Rule("b/.*", "1:4")]


def kept(tree):
    """The oracle's masks; everything where a leaf is dense."""
    return {
        "a": {"kernel": oracle(tree["a"]["kernel"])},
        "b": {"kernel": oracle(tree["b"]["kernel"], 1), "bias": np.ones(8, bool)},
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("given", ["rules", "bool", "packed"])
def test_the_gradient_is_that_of_the_sparse_network_at_every_weight(seed, given):
    """Of `sum(c * w**3)` it is `3 c w**2` where w is kept and 0 elsewhere; plus c2."""
    rng = np.random.default_rng(seed)
    tree = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), "float32"), PARAMS
    )
    slopes = jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f"), PARAMS)
    masks = kept(tree)
    plan = RULES
    if given != "rules":
        plan = js.create_masks(tree, RULES, packed=given == "packed")

    def loss(tree):
        sparse = js.straight_through(tree, plan)
        terms = jax.tree.map(lambda c, w: jnp.sum(c * w**3 + 2 * c * w), slopes, sparse)
        return sum(jax.tree.leaves(terms)), sparse

    (_, sparse), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(tree)
    expected = jax.tree.map(lambda w, m: np.where(m, w, 0), tree, masks)
    jax.tree.map(np.testing.assert_array_equal, sparse, expected)
    expected = jax.tree.map(
        lambda c, w: c * (3 * np.asarray(w, "float64") ** 2 + 2), slopes, expected
    )
    jax.tree.map(
        lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-6),
        gradients,
        expected,
    )
    assert (np.asarray(gradients["a"]["kernel"]) != 0).all()


def test_values_that_are_not_finite_are_masked_like_all_others():
    tree = {"kernel": jnp.asarray(np.tile([[np.nan], [np.inf], [1.0], [2.0]], (4, 8)))}
    masks = {"kernel": jnp.asarray(np.tile([[0], [0], [1], [1]], (4, 8)), bool)}
    loss = lambda tree: jnp.sum(js.straight_through(tree, masks)["kernel"])
    value, gradient = jax.value_and_grad(loss)(tree)
    assert value == 3.0 * 32
    np.testing.assert_array_equal(gradient["kernel"], 1.0)


def test_tangents_pass_forward_too():
    tree, tangent = {"kernel": weights(0)}, {"kernel": weights(1)}
    value, slope = jax.jvp(lambda t: js.straight_through(t, "2:4"), (tree,), (tangent,))
    np.testing.assert_array_equal(value["kernel"] != 0, oracle(tree["kernel"]))
    np.testing.assert_array_equal(slope["kernel"], tangent["kernel"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_decay_is_added_where_the_mask_prunes(dtype):
    tree = jax.tree.map(lambda x: jnp.asarray(x, dtype), PARAMS)
    gradients = grads_at(0, tree)
    tx = js.add_sr_ste_decay(RULES, decay=0.25)  # exact in any float
    with jax.numpy_dtype_promotion("strict"):
        decayed, state = jax.jit(tx.update)(gradients, tx.init(tree), tree)
    as_float = lambda x: np.asarray(x).astype(np.float64)
    for g, w, m, found in zip(
        *map(jax.tree.leaves, (gradients, tree, kept(tree), decayed)), strict=True
    ):
        expected = as_float(g) + 0.25 * ~m * as_float(w)
        np.testing.assert_allclose(
            as_float(found), expected, rtol=float(jnp.finfo(dtype).eps)
        )
        assert found.dtype == dtype
    mask = reference.unpack(
        np.asarray(js.get_masks(state)["a"]["kernel"]), (16, 8), axis=0
    )
    np.testing.assert_array_equal(mask, oracle(tree["a"]["kernel"]))


def test_masks_are_found_anew_every_so_many_steps():
    """Two groups of a column; the parameters are given, so the masks are by hand."""
    tx = js.add_sr_ste_decay([js.Rule("w", "1:2", axis=0, sizes=None)], every=3)
    first, second = (
        jnp.array([[4.0], [3.0], [2.0], [1.0]]),
        jnp.array([[1.0], [3.0], [2.0], [0.5]]),
    )
    state = tx.init({"w": first})
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    seen = []
    for index in range(200):
        tree = {"w": first if index == 0 else second}
        _, state = update({"w": jnp.zeros((4, 1))}, state, tree)
        seen.append((int(state.masks["w"][0, 0]), float(state.flip_rate)))
    # Bits: places 0 and 2 are kept, from step 3 on 1 and 2. Two of four flip.
    assert seen == [(0b0101, 0.0)] * 3 + [(0b0110, 0.5)] * 3 + [(0b0110, 0.0)] * 194


TARGET = jnp.array([[0.0], [0.0], [1.0], [1.0]])
START = {"w": jnp.array([[0.6], [0.5], [0.1], [-0.1]])}
TOY = [js.Rule("w", "2:4", axis=0, sizes=None)]


@pytest.mark.sweep
def test_sr_ste_finds_a_support_that_one_shot_pruning_does_not():
    """`sum((w - target)**2) / 2`: the two largest weights at first are the wrong two.

    Pruned at once, 0 and 0 are learned on the wrong support and the loss stays at 1.
    """

    def loss(tree):
        return jnp.sum((tree["w"] - TARGET) ** 2) / 2

    def train(tx, loss, steps=200):
        def step(carry, _):
            tree, state = carry
            updates, state = tx.update(jax.grad(loss)(tree), state, tree)
            tree = optax.apply_updates(tree, updates)
            return (tree, state), state

        (tree, _), states = lax.scan(step, (START, tx.init(START)), length=steps)
        return tree, states

    pruned, _ = train(js.wrap_optimizer(optax.sgd(0.1), TOY), loss)
    np.testing.assert_array_equal(pruned["w"][2:], 0.0)
    np.testing.assert_allclose(loss(pruned), 1.0, atol=1e-6)

    tx = optax.chain(js.add_sr_ste_decay(TOY, decay=0.1), optax.sgd(0.1))
    dense, states = train(tx, lambda tree: loss(js.straight_through(tree, TOY)))
    masks = js.create_masks(dense, TOY)
    np.testing.assert_array_equal(masks["w"], TARGET == 1)
    found = js.mask_params(dense, masks)
    np.testing.assert_allclose(found["w"], TARGET, atol=1e-6)
    assert float(states[0].flip_rate.sum()) >= 1.0  # four of four weights, in all


def test_weights_that_the_loss_does_not_hold_up_decay_by_the_closed_form():
    """A pruned weight without a gradient: `w (1 - lr * decay) ** steps`."""
    tree = {"w": jnp.array([[4.0], [3.0], [2.0], [1.0]])}
    tx = optax.chain(js.add_sr_ste_decay(TOY, decay=0.2), optax.sgd(0.5))
    state = tx.init(tree)
    for _ in range(10):
        updates, state = jax.jit(tx.update)({"w": jnp.zeros((4, 1))}, state, tree)
        tree = optax.apply_updates(tree, updates)
    expected = np.array([[4.0], [3.0], [2 * 0.9**10], [0.9**10]])
    np.testing.assert_allclose(tree["w"], expected, rtol=1e-5)


@pytest.mark.sweep
def test_with_masks_that_stay_loss_and_decay_agree():
    """Of steps 0 to 3 the loss sees the masks of the state before each update."""
    tx = js.add_sr_ste_decay(
        [js.Rule("w", "1:2", axis=0, sizes=None)], decay=1.0, every=2
    )
    trees = [jnp.array([[4.0], [3.0]]), *[jnp.array([[1.0], [3.0]])] * 3]
    state, pulls = tx.init({"w": trees[0]}), []
    for tree in trees:
        gradient, state = tx.update({"w": jnp.zeros((2, 1))}, state, {"w": tree})
        pulls.append(gradient["w"][:, 0].tolist())
    # New masks, of place 1, are found at step 2 and used from step 3 on.
    assert pulls == [[0, 3], [0, 3], [0, 3], [1, 0]]


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("pattern", ["2:4", "2:4 transposable"])
def test_masks_that_open_leave_a_dense_step_without_decay(pattern, every):
    """Dense in steps 0 and 1 and from step 4 on: as the loss, so the decay."""
    schedule = js.one_shot_schedule(2, end=4)
    rules = [js.Rule(".*", pattern, axis=0, sizes=None)]
    tx = js.add_sr_ste_decay(rules, decay=1.0, schedule=schedule, every=every)
    tree = {"w": jnp.asarray(PARAMS["a"]["kernel"])}
    best = np.asarray(js.create_masks(tree, rules)["w"])

    def step(state, _):
        seen = js.straight_through(tree, js.get_masks(state))["w"]
        pull, state = tx.update({"w": jnp.zeros((16, 8))}, state, tree)
        return state, (seen, pull["w"])

    _, (seen, pulls) = lax.scan(step, tx.init(tree), length=8)
    for index in range(8):
        kept = best if 2 <= index < 4 else np.ones_like(best)
        np.testing.assert_array_equal(seen[index], np.where(kept, tree["w"], 0))
        np.testing.assert_array_equal(pulls[index], np.where(kept, 0, tree["w"]))


def test_masks_that_change_gradually_are_those_of_the_schedule():
    """Along a line 4:4, 3:4, 2:4 and back: of each step the oracle's of that count."""
    line = jnp.array([0.0, 0.2, 0.5, 0.6, 1.0, 0.5, 0.0])
    schedule = lambda step: line[jnp.minimum(step, 6)]
    rules = [js.Rule("a/.*", "2:4")]
    tx, tree = js.add_sr_ste_decay(rules, schedule=schedule, every=100), params()
    state, masks = tx.init(tree), []
    for index in range(7):
        masks.append(unpacked(js.get_masks(state), "a"))
        _, state = jax.jit(tx.update)(grads_at(index, tree), state, tree)
    for mask, n in zip(masks, [4, 4, 3, 3, 2, 3, 4], strict=True):
        np.testing.assert_array_equal(mask, oracle(tree["a"]["kernel"], n))


def test_the_decay_may_be_traced():
    def pull(decay):
        tx = js.add_sr_ste_decay(TOY, decay=decay)
        return tx.update({"w": jnp.zeros((4, 1))}, tx.init(START), START)[0]["w"]

    pulls = jax.jit(jax.vmap(pull))(jnp.array([0.5, 1.0]))
    expected = np.array([[0, 0, 0.05, -0.05], [0, 0, 0.1, -0.1]])
    np.testing.assert_allclose(pulls[:, :, 0], expected, rtol=1e-6)


def test_wide_floats_work():
    with jax.enable_x64(True):
        tree = {"w": jnp.array([[4.0], [3.0], [2.0], [1.0]], jnp.float64)}
        tx = js.add_sr_ste_decay(TOY, decay=0.5)
        gradient, _ = jax.jit(tx.update)(tree, tx.init(tree), tree)
        np.testing.assert_array_equal(gradient["w"], [[4.0], [3.0], [3.0], [1.5]])


def test_an_equinox_module_is_its_own_tree():
    mlp = eqx.nn.MLP(16, 16, 32, depth=1, key=jax.random.key(0))
    plan = js.plan_sparsity(mlp, fn=lambda m, x: m(x), args=(jnp.ones(16),))
    sparse = js.straight_through(mlp, plan)
    expected = reference.best_mask_by_rank(np.asarray(mlp.layers[0].weight), 2, 4, 1)
    np.testing.assert_array_equal(sparse.layers[0].weight != 0, expected)


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="finite and not negative, got -1"):
        js.add_sr_ste_decay(decay=-1.0)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        js.add_sr_ste_decay(every=0)
    with pytest.raises(ValueError, match="unknown pattern 'banana'"):
        js.add_sr_ste_decay("banana")
    tx = js.add_sr_ste_decay()
    with pytest.raises(ValueError, match="depend on the parameters"):
        tx.update(params(), tx.init(params()))
