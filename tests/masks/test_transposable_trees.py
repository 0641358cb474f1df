"""Transposable patterns on trees, against every mask of a block."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse as js
from tests import reference


RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(12, 8)).astype(np.float32)
TREE = {"Dense_0": {"kernel": KERNEL, "bias": np.ones(8, np.float32)}}
BOTH = "2:4 transposable"


def best_block(block):
    """Returns the best of the 90 masks with two of four in every row and column."""
    rows = [c for c in itertools.product((0, 1), repeat=4) if sum(c) == 2]
    every = np.array(list(itertools.product(rows, repeat=4)))
    valid = every[(every.sum(1) == 2).all(1)]
    assert len(valid) == 90
    return valid[(valid * abs(block.astype(np.float64))).sum((1, 2)).argmax()] == 1


def best_transposable(matrix):
    blocks = [
        np.hsplit(rows, matrix.shape[1] // 4)
        for rows in np.vsplit(matrix, matrix.shape[0] // 4)
    ]
    return np.block([[best_block(block) for block in row] for row in blocks])


@pytest.mark.sweep(keep=["True"])
@pytest.mark.parametrize("packed", [False, True])
def test_transposable_masks_of_a_tree(packed):
    rules = [js.Rule(".*", BOTH, sizes=None)]
    plan = js.plan_sparsity(TREE, rules, dense_head=False)
    assert plan["Dense_0/kernel"].decision == "2:4 transposable along axes 0 and 1"
    masks = js.create_masks(TREE, plan, packed=packed)
    expected = best_transposable(KERNEL)
    mask = np.asarray(masks["Dense_0"]["kernel"])
    wanted = reference.pack(expected, 0) if packed else expected
    np.testing.assert_array_equal(mask, wanted)
    pruned = js.mask_params(TREE, masks)
    js.check_sparsity(pruned, plan)
    one_way = js.mask_params(
        TREE, js.create_masks(TREE, [js.Rule(".*kernel", "2:4", sizes=None, axis=0)])
    )
    with pytest.raises(ValueError, match=r"groups keep more than 2.* along axis 1$"):
        js.check_sparsity(one_way, plan)


def test_transposable_axes_come_from_the_trace():
    """Attention's output kernel (heads, dim, embed) contracts its first two axes."""
    weight = RNG.normal(size=(2, 8, 16)).astype(np.float32)
    fn = lambda p, x: jnp.einsum("bhd,hde->be", x, p["out"])
    plan = js.plan_sparsity(
        {"out": weight}, BOTH, fn=fn, args=(np.ones((3, 2, 8)),), dense_head=False
    )
    assert plan["out"].decision == "2:4 transposable along axes 1 and 2"
    mask = js.create_masks({"out": weight}, plan)["out"]
    expected = np.stack([best_transposable(head) for head in weight])
    np.testing.assert_array_equal(mask, expected)
    ragged = {"w": np.ones((16, 6)), "v": np.ones((16, 8))}
    plan = js.plan_sparsity(ragged, [js.Rule(".*", BOTH, axis=0, sizes=None)])
    assert plan["w"].decision == (
        "dense: axis 1 is not divisible by 4; pass Rule(..., pattern) with another m"
    )


@pytest.mark.sweep
@pytest.mark.parametrize("pattern", [BOTH, "4:8 transposable"])
def test_a_gradual_walk_to_a_transposable_mask(pattern):
    """Each mask is valid along both axes and keeps a subset of the one before."""
    n, m = (2, 4) if pattern == BOTH else (4, 8)
    tree = {"Dense_0": {"kernel": jnp.asarray(RNG.normal(size=(16, 24)), "float32")}}
    plan = js.plan_sparsity(tree, pattern, dense_head=False)
    schedule = optax.linear_schedule(0.0, 1.0, m - n)
    tx = js.wrap_optimizer(optax.sgd(0.1), plan, schedule=schedule)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(tree, state):
        updates, state = tx.update(tree, state, tree)
        return optax.apply_updates(tree, updates), state

    state, before = tx.init(tree), np.ones((16, 24), bool)
    for index in range(200):
        tree, state = step(tree, state)
        mask = np.asarray(tree["Dense_0"]["kernel"]) != 0
        kept = max(m - index, n)
        counts = [reference.n_per_group(mask, m, axis) for axis in (0, 1)]
        assert np.max(counts) <= kept
        assert not (mask & ~before).any()
        if m == 4:  # the exact search always finds a subset of the one before
            assert np.min(counts) == kept
        before = mask
    assert before.mean() > 0.48
    js.check_sparsity(tree, plan)


@pytest.mark.sweep(full=["float8"])
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "bfloat16", "int8"])
def test_a_walk_of_narrow_dtypes_to_a_transposable_mask(dtype):
    """Each step keeps one less per row and column, in formats without infinity too."""
    tree = {"w": jnp.asarray(20 * RNG.normal(size=(8, 8)), dtype)}
    rules = [js.Rule("w", BOTH, axis=0, sizes=None)]
    schedule = optax.linear_schedule(0.0, 1.0, 2)
    tx = js.wrap_optimizer(optax.identity(), rules, schedule=schedule)
    still, state = jax.tree.map(jnp.zeros_like, tree), tx.init(tree)
    for kept in (4, 3, 2):
        _, state = jax.jit(tx.update)(still, state, tree)
        mask = reference.unpack(np.asarray(js.get_masks(state)["w"]), (8, 8), axis=0)
        for axis in (0, 1):
            np.testing.assert_array_equal(reference.n_per_group(mask, 4, axis), kept)


def test_transposable_masks_by_scores():
    scores = {"Dense_0": {"kernel": RNG.normal(size=(12, 8)).astype(np.float32)}}
    masks = js.create_masks(TREE, [js.Rule(".*", BOTH, sizes=None)], scores=scores)
    shifted = scores["Dense_0"]["kernel"] + 100  # the same order, and no sign
    np.testing.assert_array_equal(
        masks["Dense_0"]["kernel"], best_transposable(shifted)
    )
