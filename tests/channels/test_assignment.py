"""Assignments, against all permutations; exchanges, one after the other."""

from itertools import combinations, permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse._channels.assignment import assign, exchange


def worth(values, columns):
    return np.asarray(values, np.float64)[np.arange(len(columns)), columns].sum()


def test_the_assignment_is_the_best_of_all_permutations():
    values = np.random.default_rng(0).normal(size=(3, 6, 6)).astype(np.float32)
    columns = assign(jnp.asarray(values))
    assert columns.dtype == np.int32
    for table, found in zip(values, columns, strict=True):
        best = max(worth(table, each) for each in permutations(range(6)))
        assert worth(table, found) == pytest.approx(best)


def test_noise_is_added_to_the_values():
    values = jnp.asarray([[[1.0, 0.0], [0.0, 1.0]]])
    assert assign(values).tolist() == [[0, 1]]
    noise = np.array([[[0.0, 2.0], [2.0, 0.0]]], np.float32)
    assert assign(values, noise).tolist() == [[1, 0]]


def exchanged_one_by_one(values):
    """Always the pair of rows that gains most, of those that have not exchanged."""
    gains = values - np.diagonal(values)[:, None]
    of_pair = gains + gains.T
    columns, left = np.arange(len(values)), set(range(len(values)))
    while True:
        pairs = [(of_pair[i, j], i, j) for i, j in combinations(sorted(left), 2)]
        gain, i, j = max(pairs, default=(0, 0, 0))
        if gain <= 0:
            return columns
        columns[[i, j]] = j, i
        left -= {i, j}


@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_exchanges_take_the_best_pairs_first(size):
    values = np.random.default_rng(size).normal(size=(size, size)).astype(np.float32)
    columns = np.asarray(exchange(values))
    assert np.array_equal(columns, exchanged_one_by_one(values))
    assert np.array_equal(columns[columns], np.arange(size))


def test_equal_values_stay_where_they_are():
    equal = np.full((16, 16), 1e6, np.float32)
    assert np.array_equal(exchange(equal), np.arange(16))
    tied = np.zeros((4, 4), np.float32)
    tied[~np.eye(4, dtype=bool)] = 1  # each row gains as much by any other column
    columns = np.asarray(exchange(tied))
    assert tied[np.arange(4), columns].sum() == 4


def test_exchanges_of_several_problems_run_together():
    values = np.random.default_rng(1).normal(size=(4, 9, 9)).astype(np.float32)
    together = np.asarray(jax.vmap(exchange)(values))
    assert np.array_equal(together, [np.asarray(exchange(table)) for table in values])
