"""SET and RigL: hand-derived sequences of masks."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxsparse as js
from tests import reference
from tests.training.masked import PARAMS, make_step, params


def column(*values):
    return {"w": jnp.asarray(values, jnp.float32)[:, None]}


def rule(pattern):
    return [js.Rule("w", pattern, axis=0, sizes=None)]


def bits(state, size=8):
    packed = np.asarray(js.get_masks(state)["w"])
    return reference.unpack(packed, (size, 1), axis=0)[:, 0].astype(int).tolist()


def test_rigl_moves_a_third_of_an_unstructured_leaf_by_hand():
    """Eight weights, four kept; a half of them, two, move at steps 2 and 4."""
    tree = column(8, 7, 6, 5, 4, 3, 2, 1)
    gradients = [column(0, 0, 0, 0, 1, 9, 2, 3)] * 3 + [
        column(5, 0, 6, 4, 0, 0, 0, 7)
    ] * 2
    tx = js.regrow_by_gradient(
        optax.sgd(1.0), rule(js.Unstructured(0.5)), fraction=lambda _: 0.5, every=2
    )
    state = tx.init(tree)
    assert bits(state) == [1, 1, 1, 1, 0, 0, 0, 0]
    masks, values, rates = [], [], []
    for gradient in gradients:
        updates, state = jax.jit(tx.update)(gradient, state, tree)
        tree = optax.apply_updates(tree, updates)
        masks.append(bits(state))
        values.append(tree["w"][:, 0].tolist())
        rates.append(float(state.flip_rate))
    # Step 2: 6 and 5 go; of the rest the gradients 9 and 3 are largest.
    # Step 4: of 8, 7, -9 - 0 and -3 - 7 the two largest stay, 9 and 10; then, of
    # places 0 to 4 and 6, the gradients 6 at place 2 and 5 at place 0 are largest.
    assert masks[:2] == [[1, 1, 1, 1, 0, 0, 0, 0]] * 2
    assert masks[2:4] == [[1, 1, 0, 0, 0, 1, 0, 1]] * 2
    assert masks[4] == [1, 0, 1, 0, 0, 1, 0, 1]
    assert values[1] == [8, 7, 6, 5, 0, 0, 0, 0]
    assert values[2] == [8, 7, 0, 0, 0, -9, 0, -3]  # grown weights begin at zero
    assert values[3] == [3, 7, 0, 0, 0, -9, 0, -10]
    assert values[4] == [-2, 0, -6, 0, 0, -9, 0, -17]
    assert rates == [0.0, 0.0, 0.5, 0.5, 0.25]


def test_rigl_swaps_within_the_groups_of_a_pattern():
    """2:4: of four kept weights one quarter, one, moves, within its group."""
    tree = column(8, 7, 0.5, 0.25, 6, 0.125, 1, 0.5)
    gradient = column(0, 0, 0, 3, 0, 1, 2, -5)
    tx = js.regrow_by_gradient(
        optax.identity(), rule("2:4"), fraction=lambda _: 0.25, every=1
    )
    state = tx.init(tree)
    assert bits(state) == [1, 1, 0, 0, 1, 0, 1, 0]
    sequence = []
    for _ in range(3):
        _, state = jax.jit(tx.update)(gradient, state, tree)
        sequence.append(bits(state))
    # The first step changes nothing. At the second the 1 goes, where the gradient is
    # 2, and -5 is grown in its group; at the third the smallest that is kept is this
    # one, 0.5, and it has the largest gradient of its group: it comes back at once.
    assert sequence[0] == [1, 1, 0, 0, 1, 0, 1, 0]
    assert sequence[1:] == [[1, 1, 0, 0, 1, 0, 0, 1]] * 2


def test_a_fraction_of_zero_changes_nothing_and_one_replaces_all():
    tree, gradient = column(8, 7, 6, 5, 4, 3, 2, 1), column(0, 0, 0, 0, 4, 3, 2, 1)
    for fraction, expected in ((0.0, [1] * 4 + [0] * 4), (1.0, [0] * 4 + [1] * 4)):
        tx = js.regrow_by_gradient(
            optax.identity(),
            rule(js.Unstructured(0.5)),
            fraction=lambda _, f=fraction: f,
            every=1,
        )
        state = tx.init(tree)
        for _ in range(2):
            _, state = jax.jit(tx.update)(gradient, state, tree)
        assert bits(state) == expected


@pytest.mark.sweep(keep=["pattern0"])
@pytest.mark.parametrize("grow", ["gradient", "random"])
@pytest.mark.parametrize("pattern", ["2:4", "1:8", js.Unstructured(0.9)])
def test_a_run_of_200_steps_compiles_once_and_is_sparse_throughout(grow, pattern):
    rules = [js.Rule(".*", pattern)]
    options = {"fraction": optax.cosine_decay_schedule(0.3, 150), "every": 10}
    if grow == "gradient":
        tx = js.regrow_by_gradient(optax.adamw(0.02), rules, **options)
    else:
        key = jax.random.key(0)
        tx = js.regrow_at_random(optax.adamw(0.02), rules, key=key, **options)
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(make_step(tx), n=1), donate_argnums=(0, 1))
    tree, state = params(), tx.init(params())
    before, changes = None, []
    for index in range(200):
        tree, state = step(tree, state, index)
        packed = np.asarray(js.get_masks(state)["a"]["kernel"])
        mask = reference.unpack(packed, (16, 8), axis=0)
        if isinstance(pattern, str):
            n, m = map(int, pattern.split(":"))
            assert (reference.n_per_group(mask, m, 0) == n).all()
        else:
            assert mask.sum() == 13  # a tenth of 128, to the nearest
        np.testing.assert_array_equal(np.asarray(tree["a"]["kernel"])[~mask], 0.0)
        if before is not None and (mask != before).any():
            changes.append(index)
        before = mask
    assert changes
    assert all(index % 10 == 0 and 0 < index < 150 for index in changes)


def test_random_growth_depends_on_key_and_step_alone():
    def optimizer(key):
        return js.regrow_at_random(
            optax.sgd(0.1), "2:4", key=key, fraction=lambda _: 0.5, every=3
        )

    # The key is traced, so that one program serves all of them.
    init = jax.jit(lambda key, tree: optimizer(key).init(tree))
    step = jax.jit(lambda key, *args: make_step(optimizer(key))(*args))

    def run(key, start=0, state=None, tree=None, steps=20):
        tree = params() if tree is None else tree
        state = init(key, tree) if state is None else state
        for index in range(start, steps):
            tree, state = step(key, tree, state, index)
        return tree, state

    whole, _ = run(jax.random.key(0))
    half, state = run(jax.random.key(0), steps=10)
    resumed, _ = run(jax.random.key(0), start=10, state=state, tree=half)
    chex.assert_trees_all_equal(whole, resumed)
    other, _ = run(jax.random.key(1))
    assert (np.asarray(other["a"]["kernel"] != 0) != (whole["a"]["kernel"] != 0)).any()


def test_random_growth_reaches_every_place():
    """One of 16 places is kept and moves at each step: all are seen as often."""
    tree = {"w": jnp.ones((16, 1))}
    tx = js.regrow_at_random(
        optax.identity(),
        rule("1:16"),
        key=jax.random.key(3),
        fraction=lambda _: 1.0,
        every=1,
    )

    def step(state, _):
        _, state = tx.update(tree, state, tree)
        return state, state.masks["w"][:, 0]

    _, seen = lax.scan(step, tx.init(tree), length=1601)
    counts = np.unpackbits(np.asarray(seen[1:]), axis=1).sum(0, dtype=int)
    assert counts.sum() == 1600
    assert abs(counts - 100).max() < 45  # four and a half standard deviations of 9.7


def test_masks_may_be_given():
    scores = js.random_scores(params(), jax.random.key(0))
    masks = js.create_masks(params(), "2:4", scores=scores)
    tx = js.regrow_by_gradient(
        optax.sgd(0.1), "2:4", masks=masks, fraction=lambda _: 0.3
    )
    found = np.asarray(js.get_masks(tx.init(params()))["a"]["kernel"])
    np.testing.assert_array_equal(
        reference.unpack(found, (16, 8), axis=0), masks["a"]["kernel"]
    )
    assert (
        np.asarray(masks["a"]["kernel"])
        != reference.best_mask_by_rank(PARAMS["a"]["kernel"], 2, 4, 0)
    ).any()


@pytest.mark.sweep
def test_an_ensemble_under_vmap_and_scan_is_each_run_alone():
    tx = js.regrow_by_gradient(
        optax.sgd(0.05, momentum=0.9), "2:4", fraction=lambda _: 0.3, every=2
    )

    def train(tree):
        def body(carry, index):
            return make_step(tx)(*carry, index), None

        (tree, state), _ = lax.scan(body, (tree, tx.init(tree)), jnp.arange(9))
        return tree, js.get_masks(state), state.flip_rate

    trees = [{"kernel": jnp.asarray(PARAMS[n]["kernel"])} for n in ("a", "b")]
    alone = [jax.jit(train)(tree) for tree in trees]
    with jax.numpy_dtype_promotion("strict"):
        both = jax.jit(jax.vmap(train))(
            {"kernel": jnp.stack([t["kernel"] for t in trees])}
        )
    for i, one in enumerate(alone):
        mine = jax.tree.map(lambda x, i=i: x[i], both)
        chex.assert_trees_all_equal(mine[1:], one[1:])
        chex.assert_trees_all_close(mine[0], one[0], rtol=1e-5)
        assert one[2] > 0


@pytest.mark.sweep
@pytest.mark.parametrize("grow", ["gradient", "random"])
def test_wide_floats_work(grow):
    with jax.enable_x64(True):
        tree = {"kernel": jnp.asarray(PARAMS["a"]["kernel"], jnp.float64)}
        options = {"fraction": lambda _: 0.5, "every": 1}
        tx = (
            js.regrow_by_gradient(optax.sgd(0.1), "2:4", **options)
            if grow == "gradient"
            else js.regrow_at_random(
                optax.sgd(0.1), "2:4", key=jax.random.key(0), **options
            )
        )
        state = tx.init(tree)
        for index in range(2):
            tree, state = jax.jit(make_step(tx))(tree, state, index)
        mask = np.asarray(tree["kernel"]) != 0
        np.testing.assert_array_equal(reference.n_per_group(mask, 4, 0), 2)
        assert tree["kernel"].dtype == jnp.float64


def test_a_plan_of_the_whole_tree_serves_a_part_of_it():
    plan = js.plan_sparsity(params(), "2:4", dense_head=False)
    only_a = {"a": True, "b": False}
    fraction = {"fraction": lambda _: 0.5, "every": 1}
    for tx in (
        js.wrap_optimizer(optax.sgd(0.1), plan, schedule=js.cubic_schedule(0, 2)),
        js.regrow_by_gradient(optax.sgd(0.1), plan, **fraction),
        js.add_sr_ste_decay(plan),
    ):
        masked = optax.masked(tx, only_a)
        state = masked.init(params())
        _, state = jax.jit(masked.update)(params(), state, params())
        assert js.get_masks(state)["a"]["kernel"].shape == (2, 8)


def test_parts_of_a_tree_grow_unlike_each_other():
    kernel = PARAMS["a"]["kernel"]
    tree = {"a": {"kernel": kernel}, "b": {"kernel": kernel}}
    grown = js.regrow_at_random(
        optax.identity(),
        "2:4",
        key=jax.random.key(0),
        fraction=lambda _: 0.5,
        every=1,
    )
    tx = optax.partition({"a": grown, "b": grown}, {"a": "a", "b": "b"})
    state = tx.init(tree)
    for _ in range(2):
        _, state = jax.jit(tx.update)(tree, state, tree)
    masks = js.get_masks(state)
    assert (np.asarray(masks["a"]["kernel"]) != masks["b"]["kernel"]).any()


def test_leaves_without_floats_or_gradients_are_named():
    options = {"fraction": lambda _: 0.3, "every": 1}
    tx = js.regrow_by_gradient(optax.sgd(0.1), "2:4", **options)
    with pytest.raises(TypeError, match=r"'kernel' of shape \(16, 8\) has dtype int32"):
        tx.init({"kernel": jnp.ones((16, 8), jnp.int32)})
    tree = {"kernel": jnp.ones((16, 8))}
    with pytest.raises(ValueError, match=r"'kernel' of shape \(16, 8\).*no gradient"):
        tx.update({"kernel": None}, tx.init(tree), tree)


def test_misuse_is_refused():
    options = {"fraction": lambda _: 0.3}
    with pytest.raises(ValueError, match="at least 1, got 0"):
        js.regrow_by_gradient(optax.sgd(0.1), "2:4", every=0, **options)
    for pattern in (
        js.Channel(0.5),
        js.Block((4, 4), 0.5),
        js.Unstructured(0.5, across_leaves=True),
    ):
        tx = js.regrow_by_gradient(optax.sgd(0.1), pattern, **options)
        with pytest.raises(
            ValueError, match=r"'a/kernel' of shape \(16, 8\) is planned"
        ):
            tx.init(params())
    tx = js.regrow_by_gradient(optax.sgd(0.1), "2:4", **options)
    with pytest.raises(ValueError, match="depend on the parameters"):
        tx.update(params(), tx.init(params()))
