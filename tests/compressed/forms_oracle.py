"""Both compressed forms of a weight in plain NumPy, and the best transposable masks."""

import ml_dtypes
import numpy as np

from tests.compressed.layout_oracle import assert_same_bits, compressed
from tests.patterns.transposable_oracle import as_blocks, feasible


def forms(weight, mask, dtype, axes=(-2, -1)):
    """Returns values and indices for each axis, for a stack `[*stack, p, q]`."""
    # A mask may keep more than two of a group: the first two count.
    cast = weight.astype(dtype)
    matrices = {-2: (cast, mask), -1: (cast.swapaxes(-1, -2), mask.swapaxes(-1, -2))}
    results = []
    for axis in axes:
        w, kept = matrices[axis]
        groups = kept.reshape(*kept.shape[:-2], -1, 4, kept.shape[-1])
        first = kept & ((np.cumsum(groups, -2) <= 2).reshape(kept.shape))
        results += compressed(w, first, 2, 4, w.ndim - 2)
    return results


def assert_forms(results, expected):
    """Checks values and indices to the bit."""
    arrays = [x for form in results for x in (form.values, form.indices)]
    assert len(arrays) == len(expected)
    for result, array in zip(arrays, expected, strict=True):
        assert result.shape == array.shape
        assert_same_bits(np.asarray(result), array)


def best_masks(weight, axis=-2):
    """Returns the first of the best masks of a stack, by sums of float64.

    Sums are exact if magnitudes of a block differ by less than 2**26 in float32.
    """
    w = weight if axis == -2 else weight.swapaxes(-1, -2)
    stack = w.reshape(-1, *w.shape[-2:]).astype(np.float64)
    masks = np.stack([_best_of_matrix(matrix) for matrix in abs(stack)])
    masks = masks.reshape(w.shape)
    return masks if axis == -2 else masks.swapaxes(-1, -2)


def _best_of_matrix(scores):
    blocks = as_blocks(scores, 4).reshape(-1, 16)
    limit = float(ml_dtypes.finfo(np.float32).max) / 1024
    finite = np.isfinite(blocks)
    bounded = np.where(finite, np.minimum(blocks, limit), 0)
    largest = bounded.max(1, keepdims=True)
    blocks = np.where(finite, bounded, 32 * np.where(largest > 0, largest, 1))
    table = feasible(2, 4).reshape(-1, 16)
    chosen = table[np.argmax(blocks @ table.T.astype(np.float64), 1)]
    rows, columns = scores.shape
    chosen = chosen.reshape(rows // 4, columns // 4, 4, 4)
    return chosen.swapaxes(1, 2).reshape(scores.shape)
