"""Oracles in plain NumPy: slow, exact, and independent of the library's methods.

Masks are searched group by group, by trying every pattern.
"""

from fractions import Fraction
from functools import lru_cache
from itertools import combinations

import numpy as np


@lru_cache
def patterns(n, m):
    """Returns all patterns that keep `n` of `m`, in lexicographic order."""
    rows = list(combinations(range(m), n))
    table = np.zeros((len(rows), m), np.int64)
    for row, kept in zip(table, rows, strict=True):
        row[list(kept)] = 1
    return table


def split(x, m, axis):
    """Returns the groups of `m` along `axis` as 1-D arrays, and their flat indices."""
    moved = np.moveaxis(np.arange(x.size).reshape(x.shape), axis, -1)
    lines = moved.reshape(-1, x.shape[axis]) if x.size else np.zeros((0, 0), int)
    indices = [line[i : i + m] for line in lines for i in range(0, len(line), m)]
    return [x.reshape(-1)[index] for index in indices], indices


def exact_magnitudes(group):
    """Returns magnitudes as integers or fractions, which are exact."""
    if group.dtype.kind in "iu":
        return [abs(int(value)) for value in group]
    return [abs(Fraction(float(value))) for value in group]


def dense_ranks(group):
    """Returns 0 for the smallest magnitude of a group and so on; NaN ranks highest."""
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
    """Returns the first of the patterns with the largest exact sum of magnitudes."""

    def best(group):
        magnitudes = exact_magnitudes(group)
        table = patterns(min(n, len(group)), len(group))
        sums = [sum(v for v, k in zip(magnitudes, p, strict=True) if k) for p in table]
        return table[sums.index(max(sums))]

    return _assemble(x, m, axis, best)


def best_mask_by_rank(x, n, m, axis):
    """Returns the pattern with the highest ranks, in any dtype, NaN included.

    With the worth `(n + 1) ** rank`, one element outweighs any `n` of lower rank.
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
    """Sorts each group instead, for groups with too many patterns to try."""

    def best(group):
        ranks = dense_ranks(group)
        order = sorted(range(len(group)), key=lambda i: (-ranks[i], i))
        mask = np.zeros(len(group), bool)
        mask[order[:n]] = True
        return mask

    return _assemble(x, m, axis, best)


def _assemble(x, m, axis, best):
    x = np.asarray(x)
    mask = np.zeros(x.size, bool)
    for group, index in zip(*split(x, m, axis), strict=True):
        mask[index] = best(group)
    return mask.reshape(x.shape)


def n_per_group(mask, m, axis):
    """Returns the number of True values in each group."""
    groups, _ = split(np.asarray(mask), m, axis)
    return np.array([int(group.sum()) for group in groups])


def pack(mask, axis):
    """Packs eight along `axis` to a byte, lowest bit first, padded with zeros."""
    moved = np.moveaxis(np.asarray(mask), axis, -1)
    size = moved.shape[-1]
    packed = np.zeros((*moved.shape[:-1], (size + 7) // 8), np.uint8)
    for i in range(size):
        packed[..., i // 8] |= moved[..., i].astype(np.uint8) << np.uint8(i % 8)
    return np.moveaxis(packed, -1, axis)


def unpack(packed, shape, axis):
    """Returns the mask of `shape` that `pack` packed along `axis`."""
    if not shape[axis]:
        return np.zeros(shape, bool)
    moved = np.moveaxis(packed, axis, -1)
    bits = [(moved[..., i // 8] >> np.uint8(i % 8)) & 1 for i in range(shape[axis])]
    return np.moveaxis(np.stack(bits, -1), -1, axis).astype(bool)
