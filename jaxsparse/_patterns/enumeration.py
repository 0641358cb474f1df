"""All n:m patterns of one group."""

import math
from itertools import chain, combinations

import numpy as np


def enumerate_patterns(n: int, m: int) -> np.ndarray:
    """Returns all patterns that keep `n` of `m` positions, as float32 ones and zeros.

    The rows are in lexicographic order of the kept positions.

    >>> enumerate_patterns(2, 3)
    array([[1., 1., 0.],
           [1., 0., 1.],
           [0., 1., 1.]], dtype=float32)
    """
    rows = math.comb(m, n)
    kept = np.fromiter(
        chain.from_iterable(combinations(range(m), n)), np.intp, rows * n
    )
    patterns = np.zeros((rows, m), np.float32)
    np.put_along_axis(patterns, kept.reshape(rows, n), 1, axis=1)
    return patterns
