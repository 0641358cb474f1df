"""Oracles for transposable masks: every mask tried, or a linear program solved.

A mask of a block is feasible if it keeps `n` of every row and column. The corners of
that transportation polytope are whole numbers, so a linear program finds the optimum.
"""

from functools import lru_cache
from itertools import combinations, product

import numpy as np
import scipy.sparse
from scipy.optimize import linprog


@lru_cache
def feasible(n, m):
    """All feasible masks [masks, m, m], the lexicographically largest first."""
    rows = [[int(j in kept) for j in range(m)] for kept in combinations(range(m), n)]
    tried = np.array(list(product(rows, repeat=m)))
    return tried[(tried.sum(1) == n).all(1)].astype(bool)


def best_by_trial(block, n):
    """The first of the best masks, summed exactly as whole numbers."""
    masks = feasible(n, len(block))
    numerators = exact(block)
    sums = masks.reshape(len(masks), -1).astype(object) @ numerators.ravel()
    return masks[int(np.argmax(sums))]


def exact(block):
    """Finite floats as whole numbers of a common, small unit."""
    ratios = [float(x).as_integer_ratio() for x in np.ravel(block)]
    unit = max(below for _, below in ratios)  # all are powers of two
    whole = [above * (unit // below) for above, below in ratios]
    return np.array(whole, object).reshape(np.shape(block))


def best_sum(blocks, n):
    """The largest sum of each block [blocks, m, m], in float64."""
    m = blocks.shape[-1]
    ones, each = np.ones((1, m)), scipy.sparse.eye(m)
    counts = [scipy.sparse.kron(each, ones), scipy.sparse.kron(ones, each)]
    counts = scipy.sparse.vstack(counts).tocsr()
    found = []
    for block in blocks:
        solved = linprog(
            -block.ravel(), A_eq=counts, b_eq=np.full(2 * m, n), bounds=(0, 1)
        )
        assert solved.success
        found.append(-solved.fun)
    return np.array(found)


def greedy(block, n):
    """The highest scores in turn, where row and column have room."""
    m = len(block)
    mask = np.zeros((m, m), bool)
    for place in np.argsort(-block, axis=None, kind="stable"):
        i, j = divmod(int(place), m)
        mask[i, j] = mask[i].sum() < n and mask[:, j].sum() < n
    return mask


def as_blocks(x, m):
    """A matrix [rows, columns] as its blocks [blocks, m, m]."""
    rows, columns = x.shape
    split = x.reshape(rows // m, m, columns // m, m)
    return split.swapaxes(1, 2).reshape(-1, m, m)
