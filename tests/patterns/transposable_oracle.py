"""Oracles for transposable masks: exhaustive search, or a linear program.

A mask of a block is feasible if it keeps `n` of every row and column. The vertices of
this transportation polytope are integral, so a linear program finds the optimum.
"""

from functools import lru_cache
from itertools import combinations, product

import numpy as np
import scipy.sparse
from scipy.optimize import linprog


@lru_cache
def feasible(n, m):
    """Returns all feasible masks [masks, m, m], lexicographically largest first."""
    rows = [[int(j in kept) for j in range(m)] for kept in combinations(range(m), n)]
    masks = np.array(list(product(rows, repeat=m)))
    return masks[(masks.sum(1) == n).all(1)].astype(bool)


def best_by_trial(block, n):
    """Returns the first of the best masks, by exact sums of integers."""
    masks = feasible(n, len(block))
    numerators = exact(block)
    sums = masks.reshape(len(masks), -1).astype(object) @ numerators.ravel()
    return masks[int(np.argmax(sums))]


def exact(block):
    """Returns finite floats as integers, in multiples of a common unit."""
    ratios = [float(x).as_integer_ratio() for x in np.ravel(block)]
    scale = max(denominator for _, denominator in ratios)  # all are powers of two
    integers = [numerator * (scale // denominator) for numerator, denominator in ratios]
    return np.array(integers, object).reshape(np.shape(block))


def best_sum(blocks, n):
    """Returns the largest sum of each block [blocks, m, m], in float64."""
    m = blocks.shape[-1]
    ones, each = np.ones((1, m)), scipy.sparse.eye(m)
    counts = [scipy.sparse.kron(each, ones), scipy.sparse.kron(ones, each)]
    counts = scipy.sparse.vstack(counts).tocsr()
    sums = []
    for block in blocks:
        solved = linprog(
            -block.ravel(), A_eq=counts, b_eq=np.full(2 * m, n), bounds=(0, 1)
        )
        assert solved.success
        sums.append(-solved.fun)
    return np.array(sums)


def greedy(block, n):
    """Returns a mask of the highest scores in turn, if row and column have room."""
    m = len(block)
    mask = np.zeros((m, m), bool)
    for index in np.argsort(-block, axis=None, kind="stable"):
        i, j = divmod(int(index), m)
        mask[i, j] = mask[i].sum() < n and mask[:, j].sum() < n
    return mask


def as_blocks(x, m):
    """Splits a matrix [rows, columns] into blocks [blocks, m, m]."""
    rows, columns = x.shape
    split = x.reshape(rows // m, m, columns // m, m)
    return split.swapaxes(1, 2).reshape(-1, m, m)
