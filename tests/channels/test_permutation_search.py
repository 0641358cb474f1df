"""The search of permutations, against all groupings and plain NumPy."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

from jaxsparse._channels import permutation_search
from jaxsparse._channels.assignment import exchange
from jaxsparse._channels.kept_scores import kept_by_rows, kept_scores
from jaxsparse._channels.permutation_search import search_permutation
from jaxsparse._channels.position_values import position_values
from tests.thorough import thorough


def kept_by_sorting(scores, order, n, m):
    """The sum that an n:m mask keeps of `(channel, row)` scores, row by row."""
    groups = [order[i : i + m] for i in range(0, len(order), m)]
    return sum(
        sum(sorted(scores[group, row].tolist())[-n:])
        for group in groups
        for row in range(scores.shape[1])
    )


def search(scores, n, m, seed=0):
    return search_permutation(jnp.asarray(scores), n, m, jax.random.key(seed))


def random_scores(seed, *shape):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


@pytest.mark.sweep(keep=["2-4"])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (1, 2), (4, 8)])
def test_values_of_positions_are_what_groups_keep(n, m):
    scores = random_scores(0, 2, 3 * m, 21)
    order = np.random.default_rng(1).permuted(np.tile(np.arange(3 * m), (2, 1)), axis=1)
    groups = order.astype(np.int32).reshape(2, 3, m)
    values = position_values(jnp.asarray(scores), groups[:, :, 1:], groups[:, :, 0], n)
    for problem, group, channel in np.ndindex(2, 3, 3):
        others, rows = groups[problem, group, 1:], scores[problem].T
        largest = np.sort(rows[:, others], axis=1)[:, ::-1]
        constant = largest[:, : n - 1].sum()
        filled = [groups[problem, channel, 0], *others]
        kept = kept_by_sorting(scores[problem], filled, n, m)
        assert values[problem, group, channel] + constant == pytest.approx(kept)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (3, 3)])
def test_kept_scores_are_those_of_the_largest(n, m):
    scores = random_scores(2, 2, 4 * m, 5)
    order = np.random.default_rng(3).permuted(np.tile(np.arange(4 * m), (2, 1)), axis=1)
    order = order.astype(np.int32)
    kept, free = kept_scores(scores, order, n, m), kept_by_rows(scores, n, m)
    for problem in range(2):
        expected = kept_by_sorting(scores[problem], order[problem], n, m)
        assert kept[problem] == pytest.approx(expected)
        rows = [sorted(row.tolist())[-4 * n :] for row in scores[problem].T]
        assert free[problem] == pytest.approx(np.sum(rows))


def best_of_all_groupings(scores, n, m):
    """The most that any way to divide channels into groups keeps."""

    def best(channels):
        if not channels:
            return 0.0
        first, *rest = channels
        options = []
        for others in combinations(rest, m - 1):
            left = [channel for channel in rest if channel not in others]
            own = kept_by_sorting(scores, [first, *others], n, m)
            options.append(own + best(left))
        return max(options)

    return best(list(range(len(scores))))


@pytest.mark.sweep(keep=["2-4"])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (1, 4)])
def test_eight_channels_reach_99_percent_of_the_best_grouping(n, m):
    scores = random_scores(4, 4, 8, 6)
    for table, order in zip(scores, search(scores, n, m), strict=True):
        kept = kept_by_sorting(table, order, n, m)
        best = best_of_all_groupings(table, n, m)
        plain = kept_by_sorting(table, range(8), n, m)
        assert plain <= kept <= best + 1e-4
        assert kept - plain >= 0.99 * (best - plain) - 1e-4


def test_hidden_groups_are_found():
    rng = np.random.default_rng(5)
    # Row by row, two channels of each group are zero, so that 2:4 can keep everything.
    zero = rng.permuted(np.tile([True, True, False, False], (4, 20, 1)), axis=2)
    scores = np.where(zero, 0, 1 + rng.random(zero.shape)).astype(np.float32)
    scores = scores.swapaxes(1, 2).reshape(16, 20)
    shuffled = scores[rng.permutation(16)]
    (order,) = search(shuffled[None], 2, 4)
    assert kept_by_sorting(shuffled, order, 2, 4) == pytest.approx(scores.sum())


@pytest.mark.sweep
@thorough(100)
@given(
    seed=st.integers(0, 99),
    pattern=st.sampled_from([(2, 4), (1, 4), (1, 2), (4, 8)]),
    kind=st.sampled_from(["normal", "ties", "zeros", "outliers"]),
)
def test_permutations_are_permutations(seed, pattern, kind):
    n, m = pattern
    rng = np.random.default_rng(seed)
    scores = {
        "normal": rng.normal(size=(2, 16, 9)),
        "ties": rng.integers(0, 3, (2, 16, 9)),
        "zeros": np.zeros((2, 16, 9)),
        "outliers": np.exp(4 * rng.normal(size=(2, 16, 9))),
    }[kind].astype(np.float32)
    found = search(scores, n, m, seed)
    assert np.array_equal(np.sort(found, axis=1), np.tile(np.arange(16), (2, 1)))


def test_the_same_key_gives_the_same_permutation():
    scores = random_scores(8, 1, 32, 40)
    assert np.array_equal(search(scores, 2, 4, 3), search(scores, 2, 4, 3))
    assert not np.array_equal(search(scores, 2, 4, 3), search(scores, 2, 4, 4))


def test_asp_example_is_permuted_better_than_by_asp():
    scores = np.random.RandomState(1).rand(128, 64).astype(np.float32).T[None]
    plain = np.arange(64, dtype=np.int32)[None]
    before, rows = kept_scores(scores, plain, 2, 4), kept_by_rows(scores, 2, 4)
    # The figures of ASP's README.
    assert (before[0], rows[0]) == pytest.approx((2852.38, 3042.33), abs=0.01)
    after = kept_scores(scores, search(scores, 2, 4), 2, 4)
    assert (after - before) / (rows - before) > 0.362


def test_more_channels_than_are_annealed():
    scores = np.abs(np.random.default_rng(6).normal(size=(1, 640, 16)))
    scores = scores.astype(np.float32)
    found = search(scores, 2, 4)
    plain = np.arange(640, dtype=np.int32)[None]
    before, rows = kept_scores(scores, plain, 2, 4), kept_by_rows(scores, 2, 4)
    after = kept_scores(scores, found, 2, 4)
    assert np.array_equal(np.sort(found), plain)
    assert (after - before) / (rows - before) > 0.5  # few rows are easy


def test_exchanges_find_nearly_as_good_permutations(monkeypatch):
    def by_exchanges(values, noise=0.0):
        return np.asarray(jax.vmap(exchange)(values + jnp.asarray(noise)))

    monkeypatch.setattr(permutation_search, "_ANNEALED_STEPS", 40)
    scores = random_scores(7, 1, 32, 40)
    plain = np.arange(32, dtype=np.int32)[None]
    exact = kept_scores(scores, search(scores, 2, 4), 2, 4)
    monkeypatch.setattr(permutation_search, "assign", by_exchanges)
    found = kept_scores(scores, search(scores, 2, 4), 2, 4)
    before = kept_scores(scores, plain, 2, 4)
    assert found - before > 0.8 * (exact - before)
