"""The sparsest n:m pattern that a weight obeys."""

import jax.numpy as jnp
import numpy as np


#: The largest group size that is tried.
_MAX_M = 16

_BITS = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def nonzero(weight: np.ndarray) -> np.ndarray:
    """Returns 1 where the weight is not zero, as uint8; NaN and subnormals are not."""
    bits = _BITS.get(weight.dtype.itemsize)
    if bits is None or not jnp.issubdtype(weight.dtype, jnp.floating):
        return np.asarray(weight != 0).view(np.uint8)
    without_sign = bits(np.iinfo(bits).max >> 1)
    return np.asarray((weight.view(bits) & without_sign) != 0).view(np.uint8)


def count_zeros(weight: np.ndarray) -> int:
    """Returns the number of weights that are zero."""
    return weight.size - int(np.count_nonzero(nonzero(weight)))


def count_nonfinite(weight: np.ndarray) -> int:
    """Returns the number of values that are NaN or infinite."""
    if not jnp.issubdtype(weight.dtype, jnp.inexact):
        return 0
    return weight.size - int(np.count_nonzero(np.isfinite(weight)))


def finest_pattern(nonzeros: np.ndarray) -> tuple[int, int, tuple[int, ...]] | None:
    """Returns the n:m pattern of the lowest density that the weight obeys.

    Of several with the same density, it is that with the smallest groups.

    Args:
      nonzeros: uint8, 1 where a weight is not zero.

    Returns:
      `n`, `m` and all axes along which the pattern is obeyed, with `m` of 2, 4, 8 or
      16. None if the weight obeys no pattern or has only zeros.

    >>> finest_pattern(np.array([[1, 1, 0, 0], [0, 0, 1, 1]], np.uint8))
    (1, 2, (0,))
    >>> finest_pattern(np.array([[0, 1, 0, 0], [0, 0, 1, 0]], np.uint8))
    (1, 4, (1,))
    """
    kept = np.count_nonzero(nonzeros)
    if kept == 0 or (nonzeros.size - kept) * _MAX_M < nonzeros.size:
        return None  # only zeros, or too few for one in every group
    axes_of: dict[tuple[int, int], list[int]] = {}
    for axis in range(nonzeros.ndim):
        counts, m = np.moveaxis(nonzeros, axis, 0), 1
        while m < _MAX_M and counts.shape[0] % 2 == 0:
            counts, m = counts[0::2] + counts[1::2], 2 * m
            n = int(counts.max())
            if n < m:
                axes_of.setdefault((n, m), []).append(axis)
    if not axes_of:
        return None
    n, m = min(axes_of, key=lambda pattern: (pattern[0] / pattern[1], pattern[1]))
    return n, m, tuple(axes_of[n, m])
