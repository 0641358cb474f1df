"""Assignments, against all permutations and SciPy's."""

from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from jaxsparse._channels.assignment import assign, auction


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


@pytest.mark.sweep(keep=["[1]", "[32]", "[128]"])
@pytest.mark.parametrize("size", [1, 2, 7, 32, 128])
def test_an_auction_is_within_its_steps_of_the_best(size):
    values = np.random.default_rng(size).normal(size=(size, size)).astype(np.float32)
    best = worth(values, linear_sum_assignment(values, maximize=True)[1])
    for step in (0.1, 0.01):
        columns = np.asarray(auction(values, step))
        assert sorted(columns) == list(range(size))
        assert best - size * step <= worth(values, columns) + 1e-4 <= best + 2e-4


def test_an_auction_ends_with_values_that_are_equal_or_far_apart():
    equal = np.full((16, 16), 1e6, np.float32)
    assert sorted(np.asarray(auction(equal, 0.0))) == list(range(16))
    rng = np.random.default_rng(0)
    far = (1e6 + 10.0 ** rng.uniform(-6, 4, (16, 16))).astype(np.float32)
    assert sorted(np.asarray(auction(far, 0.0))) == list(range(16))


def test_auctions_of_several_problems_run_together():
    values = np.random.default_rng(1).normal(size=(4, 9, 9)).astype(np.float32)
    together = np.asarray(jax.vmap(auction, (0, None))(values, 0.01))
    one_by_one = [np.asarray(auction(table, 0.01)) for table in values]
    assert np.array_equal(together, one_by_one)
