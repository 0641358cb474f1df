"""The selection network on all inputs of zeros and ones, which imply the rest."""

from itertools import product

import numpy as np
import pytest

from jaxsparse.kernels.selection_network import nth_largest, sort


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_a_network_sorts_and_selects_by_the_zero_one_principle(size):
    # Minima and maxima commute with thresholds, so a network that is right on zeros
    # and ones is right on everything (Knuth, The Art of Computer Programming 3, 5.3.4).
    values = np.array(list(product((0, 1), repeat=size))).T
    ones = values.sum(0)
    expected = [n <= ones for n in range(1, size + 1)]
    ordered = sort(list(values), np.minimum, np.maximum)
    np.testing.assert_array_equal(ordered, expected)
    for n in range(1, size + 1):
        nth = nth_largest(list(values), n, np.minimum, np.maximum)
        np.testing.assert_array_equal(nth, expected[n - 1])


@pytest.mark.parametrize(("size", "n", "operations"), [(8, 4, 27), (16, 8, 91)])
def test_a_network_takes_as_few_operations_as_stated(size, n, operations):
    # Two sorts of half the size (5 or 19 exchanges of a minimum and a maximum each),
    # then n + 1 ways to split n, of which n - 1 have two ends.
    used = []
    count = lambda of: lambda a, b: used.append(1) or of(a, b)
    nth_largest(list(range(size)), n, count(min), count(max))
    assert len(used) == operations
