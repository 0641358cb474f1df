"""ADMM for pruning as published, step by step in float64, by direct solves.

The steps are those of Boyd et al. (2011), section 3.1, for the error of a layer and the
set of sparse weights; the penalty is that of ALPS (arXiv:2406.07831, section 3.2).
"""

from itertools import combinations, product

import numpy as np


def admm(weight, moment, project, steps):
    """Returns the least squares under ADMM's mask, and the mask."""
    weight, moment = np.asarray(weight, np.float64), np.asarray(moment, np.float64)
    scale = np.sqrt(np.diag(moment))
    unit, dense = moment / np.outer(scale, scale), weight * scale[:, None]
    mask = project(dense)
    sparse, multiplier, penalty = dense * mask, np.zeros(dense.shape), 0.1
    for _ in range(steps // 3):
        before = mask
        for _ in range(3):
            right = unit @ dense - multiplier + penalty * sparse
            free = np.linalg.solve(unit + penalty * np.eye(len(unit)), right)
            mask = project(free + multiplier / penalty)
            sparse = (free + multiplier / penalty) * mask
            multiplier = multiplier + penalty * (free - sparse)
        changed = (mask != before).sum() / mask.sum()
        if changed == 0:
            break
        penalty *= 1.3 if changed > 0.1 else 1.2 if changed > 0.005 else 1.1
    return least_squares(weight, mask, moment), mask


def least_squares(weight, mask, moment):
    """Returns the weights under a mask of least error."""
    best = np.zeros(weight.shape)
    for output, kept in enumerate(mask.T):
        target = moment[kept] @ weight[:, output]
        best[kept, output] = np.linalg.solve(moment[np.ix_(kept, kept)], target)
    return best


def n_of_m(n, m):
    """Returns the projection that keeps the largest `n` of each `m` inputs."""

    def project(x):
        groups = abs(x).reshape(-1, m, x.shape[1])
        order = np.argsort(np.argsort(-groups, 1, kind="stable"), 1)
        return (order < n).reshape(x.shape)

    return project


def transposable(n, m):
    """Returns the projection that keeps `n` per row and column of blocks."""
    rows = [np.isin(np.arange(m), kept) for kept in combinations(range(m), n)]
    masks = [np.array(x) for x in product(rows, repeat=m)]
    masks = [mask for mask in masks if (mask.sum(0) == n).all()]

    def project(x):
        best = np.zeros(x.shape, bool)
        for i, j in product(range(0, len(x), m), range(0, x.shape[1], m)):
            block = x[i : i + m, j : j + m] ** 2
            sums = [block[mask].sum() for mask in masks]
            best[i : i + m, j : j + m] = masks[int(np.argmax(sums))]
        return best

    return project


def per_output(kept):
    """Returns the projection that keeps the largest weights of each output."""

    def project(x):
        return np.argsort(np.argsort(-abs(x), 0), 0) < kept

    return project


def blocks(kept, height, width):
    """Returns the projection that keeps the blocks of the largest sums of squares."""

    def project(x):
        inputs, outputs = x.shape
        tiles = x.reshape(inputs // height, height, outputs // width, width)
        sums = (tiles**2).sum((1, 3))
        rank = np.argsort(np.argsort(-sums, None)).reshape(sums.shape)
        return np.kron(rank < kept, np.ones((height, width), bool))

    return project
