from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse._patterns.transposable import best_transposable_mask
from tests.patterns.transposable_oracle import (
    as_blocks,
    best_by_trial,
    best_sum,
    exact,
    feasible,
    greedy,
)


KINDS = {
    "ties": lambda rng, shape: rng.integers(-2, 3, shape),
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy": lambda rng, shape: 10 ** rng.normal(size=shape) * 3,
    "wide": lambda rng, shape: 10 ** (3 * rng.normal(size=shape)),
    "student": lambda rng, shape: np.abs(rng.standard_t(2, size=shape)),
}


def scores(kind, blocks, m, dtype=np.float32):
    """A matrix of one column of blocks."""
    rng = np.random.default_rng(m)
    return KINDS[kind](rng, (blocks * m, m)).astype(dtype)


@partial(jax.jit, static_argnames=("n", "m", "axes"))
def best_mask(x, n, m, axes=(0, 1)):
    with jax.numpy_dtype_promotion("strict"):
        return best_transposable_mask(x, n, m, axes)


def mask_blocks(x, n, m):
    return as_blocks(np.asarray(best_mask(jnp.asarray(x), n, m)), m)


def assert_valid(masks, n):
    assert (masks.sum(1) == n).all()
    assert (masks.sum(2) == n).all()


def test_there_are_as_many_masks_as_counted_by_hand():
    counted = {(1, 2): 2, (1, 3): 6, (2, 3): 6, (1, 4): 24, (2, 4): 90, (3, 4): 24}
    assert {key: len(feasible(*key)) for key in counted} == counted


@pytest.mark.parametrize("kind", ["ties", "normal", "heavy", "wide"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_mask_of_four_has_a_larger_sum(n, kind):
    x = scores(kind, 10_000, 4)
    masks = mask_blocks(x, n, 4)
    assert_valid(masks, n)
    # Sums of float32 as whole numbers of 2**-30 or less: exact below 2**1023.
    blocks = as_blocks(x, 4).astype(np.float64)
    every = feasible(n, 4).reshape(-1, 16).astype(np.float64)
    best = (blocks.reshape(-1, 16) @ every.T).max(1)
    lost = best - (blocks * masks).sum((1, 2))
    assert (lost <= 2.0**-44 * np.abs(blocks).sum((1, 2))).all()


@pytest.mark.sweep(keep=["ties"])
@pytest.mark.parametrize("kind", ["ties", "normal", "heavy"])
@pytest.mark.parametrize(("n", "m"), [(1, 2), (1, 3), (2, 3), (1, 4), (2, 4), (3, 4)])
def test_small_masks_are_those_of_exact_sums_and_ties_go_to_the_first(n, m, kind):
    x = scores(kind, 300, m)
    expected = [best_by_trial(block, n) for block in as_blocks(x, m)]
    np.testing.assert_array_equal(mask_blocks(x, n, m), expected)


def test_of_equal_scores_the_first_mask_is_kept():
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    np.testing.assert_array_equal(
        best_mask(jnp.ones((4, 4)), 2, 4), np.array(expected) > 0
    )


def test_a_small_weight_decides_beside_a_large_one():
    # In float32 2**30 + 1 == 2**30. Rows 0 and 1 choose from columns 1 to 3.
    x = np.zeros((4, 4), np.float32)
    x[0, 0], x[0, 3], x[1, 3] = 2**30, 1, 2
    mask = mask_blocks(x, 1, 4)[0]
    assert mask[0, 0]
    assert mask[1, 3]
    np.testing.assert_array_equal(mask, best_by_trial(x, 1))


@pytest.mark.sweep(keep=["[bfloat16]"])
@pytest.mark.parametrize(
    "dtype", ["float8_e4m3fn", "float8_e5m2", "float16", "bfloat16"]
)
def test_narrow_formats_are_summed_exactly(dtype):
    x = jnp.asarray(scores("normal", 300, 4)).astype(dtype)
    wide = np.asarray(x.astype(jnp.float32))
    expected = [best_by_trial(block, 2) for block in as_blocks(wide, 4)]
    np.testing.assert_array_equal(mask_blocks(x, 2, 4), expected)


@pytest.mark.sweep
def test_float64_is_summed_in_pairs_of_float64():
    with jax.enable_x64(True):
        x = scores("normal", 300, 4, np.float64)
        x[0::4, 0] += 2.0**50  # float64 alone would keep few bits of the rest
        expected = [best_by_trial(block, 2) for block in as_blocks(x, 4)]
        np.testing.assert_array_equal(mask_blocks(x, 2, 4), expected)
        assert_valid(mask_blocks(scores("normal", 9, 8, np.float64), 4, 8), 4)


@pytest.mark.sweep(full=["student", "16-32"])
@pytest.mark.parametrize("kind", ["normal", "student"])
@pytest.mark.parametrize(("n", "m"), [(2, 8), (4, 8), (4, 16), (8, 16), (16, 32)])
def test_wide_masks_are_close_to_the_optimum(n, m, kind):
    x = np.abs(scores(kind, 200, m))
    blocks, masks = as_blocks(x, m).astype(np.float64), mask_blocks(x, n, m)
    assert_valid(masks, n)
    share = (blocks * masks).sum((1, 2)) / best_sum(blocks, n)
    assert share.mean() >= 0.995
    assert share.min() >= 0.98
    taken = sum((block * greedy(block, n)).sum() for block in blocks)
    assert (blocks * masks).sum() > taken


@pytest.mark.sweep
def test_signs_count():
    x = scores("normal", 50, 8)
    blocks, masks = as_blocks(x, 8).astype(np.float64), mask_blocks(x, 4, 8)
    assert_valid(masks, 4)
    lost = best_sum(blocks, 4) - (blocks * masks).sum((1, 2))
    assert lost.mean() <= 0.005 * np.abs(blocks).sum((1, 2)).mean()


def hostile():
    rng = np.random.default_rng(0)
    largest = np.finfo(np.float32).max
    special = [np.nan, np.inf, -np.inf, largest, -largest, 1e-45, 0.0, -0.0, 1.0]
    shape = (192, 192)  # all sides tested divide it
    return {
        "equal": np.full(shape, 3.0),
        "zero": np.zeros(shape),
        "subnormal": rng.integers(0, 9, shape) * 1e-45,
        "huge": rng.uniform(0.5, 1, shape) * largest,
        "range": 10 ** rng.uniform(-38, 38, shape),
        "nan": np.full(shape, np.nan),
        "infinite": rng.choice([np.inf, -np.inf], shape),
        "special": rng.choice(special, shape),
    }


@pytest.mark.sweep(keep=["2-4", "2-3"])
@pytest.mark.parametrize("kind", hostile())
@pytest.mark.parametrize(("n", "m"), [(2, 3), (2, 4), (4, 8)])
def test_no_input_breaks_a_mask(n, m, kind):
    assert_valid(mask_blocks(hostile()[kind].astype(np.float32), n, m), n)


@pytest.mark.sweep
@pytest.mark.parametrize("m", [1, 5, 12, 64])
def test_every_side_has_valid_masks(m):
    x = scores("normal", 2, m)
    for n in {1, (m + 1) // 2, m}:
        assert_valid(mask_blocks(x, n, m), n)


@pytest.mark.sweep(keep=["[nan-4]", "[inf-4]"])
@pytest.mark.parametrize("m", [4, 8, 16])
@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_what_is_not_finite_is_kept_and_the_rest_still_counts(special, m):
    x = np.abs(scores("normal", 20, m))
    where = (np.arange(20) * m + 1, np.arange(20) % m)
    finite = x.copy()
    finite[where] = 1000  # worth more than whatever else it might displace
    x[where] = special
    masks = mask_blocks(x, m // 2, m)
    assert masks[np.arange(20), 1, where[1]].all()
    blocks = as_blocks(finite, m).astype(np.float64)
    share = (blocks * masks).sum((1, 2)) / best_sum(blocks, m // 2)
    assert share.min() >= 0.98


@pytest.mark.parametrize("m", [4, 8])
def test_scale_does_not_matter(m):
    x = scores("normal", 20, m)
    expected = mask_blocks(x, m // 2, m)
    for power in (-80, 80):
        scaled = x * np.float32(2.0**power)
        np.testing.assert_array_equal(mask_blocks(scaled, m // 2, m), expected)


@pytest.mark.sweep(full=["4-8"])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8)])
def test_axes_may_lie_anywhere(n, m):
    x = scores("normal", 6, m)
    x = np.stack([x, -x])  # [batch, rows, columns]
    expected = np.stack([np.asarray(best_mask(jnp.asarray(y), n, m)) for y in x])
    for order in ((1, 0, 2), (2, 0, 1), (2, 1, 0)):
        axes = order.index(1), order.index(2)
        moved = best_mask(jnp.asarray(x.transpose(order)), n, m, axes)
        np.testing.assert_array_equal(moved, expected.transpose(order))


@pytest.mark.sweep(full=["4-8"])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8)])
def test_jit_vmap_and_scan_find_the_same(n, m):
    x = jnp.asarray(scores("normal", 12, m).reshape(3, 4 * m, m))
    plain = partial(best_transposable_mask, n=n, m=m, axes=(0, 1))
    expected = np.stack([np.asarray(best_mask(y, n, m)) for y in x])
    assert_valid(as_blocks(expected.reshape(-1, m), m), n)
    np.testing.assert_array_equal(jax.jit(jax.vmap(plain))(x), expected)
    _, scanned = jax.lax.scan(lambda c, y: (c, plain(y)), 0, x)
    np.testing.assert_array_equal(scanned, expected)


@pytest.mark.sweep(full=["[8]"])
@pytest.mark.parametrize("m", [4, 8])
def test_a_traced_n_finds_the_same_in_one_compilation(m):
    x = jnp.asarray(scores("normal", 12, m))
    traces = []

    @jax.jit
    def traced(x, n):
        traces.append(n)
        return best_transposable_mask(x, n, m, (0, 1))

    for n in (1, m // 2, m):
        expected = best_mask(x, n, m)
        assert_valid(as_blocks(np.asarray(expected), m), n)
        np.testing.assert_array_equal(traced(x, jnp.int32(n)), expected)
    assert len(traces) == 1
    every = jax.vmap(traced, in_axes=(None, 0))(x, jnp.arange(1, m + 1))
    np.testing.assert_array_equal(every.sum((1, 2)), 12 * m * np.arange(1, m + 1))


@pytest.mark.sweep
def test_counts_may_be_batched():
    x = KINDS["normal"](np.random.default_rng(0), (3, 8, 8)).astype(np.float32)
    search = lambda x, n: best_transposable_mask(x, n, 4, (0, 1))
    masks = jax.jit(jax.vmap(search))(x, jnp.arange(1, 4))
    for n, (mask, block) in enumerate(zip(masks, x, strict=True), 1):
        for block_mask, scored in zip(
            as_blocks(np.asarray(mask), 4), as_blocks(block, 4), strict=True
        ):
            np.testing.assert_array_equal(block_mask, best_by_trial(scored, n))


@pytest.mark.sweep
def test_chunks_do_not_matter():
    # More blocks than a chunk holds, and not a multiple of them.
    x = scores("normal", 1100, 8)
    whole = mask_blocks(x, 4, 8)
    assert_valid(whole, 4)
    np.testing.assert_array_equal(whole[-50:], mask_blocks(x[-400:], 4, 8))


def test_nothing_is_kept_of_nothing():
    for shape in ((0, 8), (8, 0), (0, 4, 4)):
        axes = len(shape) - 2, len(shape) - 1
        assert best_transposable_mask(jnp.zeros(shape), 2, 4, axes).shape == shape


def test_sides_that_do_not_divide_are_the_callers_fault():
    with pytest.raises(AssertionError):
        best_transposable_mask(jnp.zeros((6, 4)), 2, 4, (0, 1))


def test_the_oracle_is_exact():
    values = exact(np.array([[0.5, 3.0], [2.0**-40, -1.0]]))
    unit = 2**40
    assert values.tolist() == [[unit // 2, 3 * unit], [1, -unit]]
