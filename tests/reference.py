"""Oracles in plain NumPy: slow, exact, and written without the library's methods.

A mask is found group by group, by trying every pattern there is.
"""

from fractions import Fraction
from functools import lru_cache
from itertools import combinations

import numpy as np


@lru_cache
def patterns(n, m):
    """All ways to keep `n` of `m`, the one that keeps the first places first."""
    rows = list(combinations(range(m), n))
    table = np.zeros((len(rows), m), np.int64)
    for row, kept in zip(table, rows, strict=True):
        row[list(kept)] = 1
    return table


def split(x, m, axis):
    """The groups of `m` along `axis` as a list of 1-D arrays, and where they lie."""
    moved = np.moveaxis(np.arange(x.size).reshape(x.shape), axis, -1)
    lines = moved.reshape(-1, x.shape[axis]) if x.size else np.zeros((0, 0), int)
    places = [line[i : i + m] for line in lines for i in range(0, len(line), m)]
    return [x.reshape(-1)[place] for place in places], places


def exact_magnitudes(group):
    """Magnitudes as exact numbers; every finite float is a fraction."""
    if group.dtype.kind in "iu":
        return [abs(int(value)) for value in group]
    return [abs(Fraction(float(value))) for value in group]


def dense_ranks(group):
    """0 for the smallest magnitude of a group; NaN above infinity above the rest."""
    if group.dtype.kind in "iu":
        keys = [(0, abs(int(value))) for value in group]
    else:
        values = [
            float(value) for value in group
        ]  # exact for every format up to 64 bit
        keys = [(1, 0.0) if v != v else (0, abs(v)) for v in values]
    order = sorted(set(keys))
    return np.array([order.index(key) for key in keys], np.int64)


def best_mask_by_sum(x, n, m, axis):
    """The pattern with the largest exact sum of magnitudes; of equal ones the first."""

    def best(group):
        magnitudes = exact_magnitudes(group)
        table = patterns(min(n, len(group)), len(group))
        sums = [sum(v for v, k in zip(magnitudes, p, strict=True) if k) for p in table]
        return table[sums.index(max(sums))]

    return _assemble(x, m, axis, best)


def best_mask_by_rank(x, n, m, axis):
    """The pattern with the highest ranks, in any dtype, NaN and infinities included.

    Worth `(n + 1) ** rank`, one kept element outweighs any `n` of lower rank.
    """

    def best(group):
        size = len(group)
        table = patterns(min(n, size), size)
        worth = np.array([(n + 1) ** int(r) for r in dense_ranks(group)], object)
        if (n + 1) ** size < 2**62:
            worth = worth.astype(np.int64)
        return table[np.argmax(table @ worth)]

    return _assemble(x, m, axis, best)


def top_n_mask(x, n, m, axis):
    """The same by sorting each group, for groups with too many patterns to try."""

    def best(group):
        ranks = dense_ranks(group)
        order = sorted(range(len(group)), key=lambda i: (-ranks[i], i))
        return np.isin(np.arange(len(group)), order[:n])

    return _assemble(x, m, axis, best)


def _assemble(x, m, axis, best):
    x = np.asarray(x)
    mask = np.zeros(x.size, bool)
    for group, place in zip(*split(x, m, axis), strict=True):
        mask[place] = best(group)
    return mask.reshape(x.shape)


def n_per_group(mask, m, axis):
    """How many are True in each group."""
    groups, _ = split(np.asarray(mask), m, axis)
    return np.array([int(group.sum()) for group in groups])


def pack(mask, axis):
    """Eight along `axis` to a byte, the first in the lowest bit, zeros at the end."""
    moved = np.moveaxis(np.asarray(mask), axis, -1)
    size = moved.shape[-1]
    packed = np.zeros((*moved.shape[:-1], (size + 7) // 8), np.uint8)
    for i in range(size):
        packed[..., i // 8] |= moved[..., i].astype(np.uint8) << np.uint8(i % 8)
    return np.moveaxis(packed, -1, axis)


def unpack(packed, shape, axis):
    """The mask of `shape` that `pack` packed along `axis`."""
    if not shape[axis]:
        return np.zeros(shape, bool)
    moved = np.moveaxis(packed, axis, -1)
    bits = [(moved[..., i // 8] >> np.uint8(i % 8)) & 1 for i in range(shape[axis])]
    return np.moveaxis(np.stack(bits, -1), -1, axis).astype(bool)
