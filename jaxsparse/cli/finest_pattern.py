"""The finest n:m that a weight obeys, by counting."""

import jax.numpy as jnp
import numpy as np


#: The sizes of groups that are looked at.
_LARGEST = 16

_BITS = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def nonzero(weight: np.ndarray) -> np.ndarray:
    """Where the weight is not zero, as uint8; NaN is not, subnormals are not."""
    bits = _BITS.get(weight.dtype.itemsize)
    if bits is None or not jnp.issubdtype(weight.dtype, jnp.floating):
        return np.asarray(weight != 0).view(np.uint8)
    without_sign = bits(np.iinfo(bits).max >> 1)
    return np.asarray((weight.view(bits) & without_sign) != 0).view(np.uint8)


def finest_pattern(there: np.ndarray) -> tuple[int, int, tuple[int, ...]] | None:
    """The pattern n:m with the fewest weights, and of those with the smallest groups.

    Args:
      there: uint8, 1 where a weight is not zero.

    Returns:
      `n`, `m`, for `m` of 2, 4, 8 or 16, and all axes along which it is obeyed; None
      where none is, or nothing but zeros is there.

    >>> finest_pattern(np.array([[1, 1, 0, 0], [0, 0, 1, 1]], np.uint8))
    (1, 2, (0,))
    >>> finest_pattern(np.array([[0, 1, 0, 0], [0, 0, 1, 0]], np.uint8))
    (1, 4, (1,))
    """
    kept = np.count_nonzero(there)
    if kept == 0 or (there.size - kept) * _LARGEST < there.size:
        return None  # the latter has no room for a zero in every group
    found: dict[tuple[int, int], list[int]] = {}
    for axis in range(there.ndim):
        counts, m = np.moveaxis(there, axis, 0), 1
        while m < _LARGEST and counts.shape[0] % 2 == 0:
            counts, m = counts[0::2] + counts[1::2], 2 * m
            n = int(counts.max())
            if n < m:
                found.setdefault((n, m), []).append(axis)
    if not found:
        return None
    n, m = min(found, key=lambda pattern: (pattern[0] / pattern[1], pattern[1]))
    return n, m, tuple(found[n, m])
