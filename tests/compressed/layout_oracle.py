"""Compressed weights in plain NumPy, group by group, by the documented layout."""

import ml_dtypes
import numpy as np

from jaxsparse import NM, Compressed


FLOATS = [np.float32, np.float16, ml_dtypes.bfloat16]
DTYPES = [*FLOATS, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, np.int8, np.int32]


def random_mask(rng, shape, n, m, axis, fewer=False):
    """Returns a mask that keeps `n` of each group, or at most `n`."""
    groups = np.moveaxis(np.empty(shape), axis, -1)
    scores = rng.random((*groups.shape[:-1], groups.shape[-1] // m, m))
    kept = scores.argsort(-1).argsort(-1) < n
    if fewer:
        kept &= rng.random(kept.shape) < 0.6
    return np.moveaxis(kept.reshape(groups.shape), -1, axis)


def random_weight(rng, shape, dtype):
    return (4 * rng.normal(size=shape)).astype(dtype)


def masked(weight, mask):
    return np.where(mask, weight, np.zeros((), weight.dtype))


def compressed(weight, mask, n, m, axis):
    """Returns values and indices, one group after the other."""
    lines = np.moveaxis(masked(weight, mask), axis, -1)
    kept = np.moveaxis(mask, axis, -1)
    values = np.empty((*lines.shape[:-1], lines.shape[-1] * n // m), weight.dtype)
    position_bits = {4: 2, 8: 4, 16: 4}[m]
    code_size = min(n * position_bits, m)
    size = -(-lines.shape[-1] // m * code_size // 8)
    indices = np.zeros((*lines.shape[:-1], size), np.uint8)
    for line in np.ndindex(lines.shape[:-1]):
        number = 0
        for g in range(lines.shape[-1] // m):
            group = kept[line][g * m : (g + 1) * m]
            positions = [i for i in range(m) if group[i]]
            positions += [i for i in range(m) if not group[i]][: n - len(positions)]
            positions.sort()
            if n * position_bits <= m:
                code = sum(
                    position << position_bits * j
                    for j, position in enumerate(positions)
                )
            else:
                code = sum(1 << position for position in positions)
            number |= code << g * code_size
            for j, position in enumerate(positions):
                values[line][g * n + j] = lines[line][g * m + position]
        indices[line] = list(number.to_bytes(size, "little"))
    return np.moveaxis(values, -1, axis), np.moveaxis(indices, -1, axis)


def as_compressed(weight, mask, n, m, axis):
    values, indices = compressed(weight, mask, n, m, axis)
    return Compressed(values, indices, NM(n, m), axis - weight.ndim)


def bits(x):
    x = np.asarray(x)
    return x.view(f"uint{8 * x.dtype.itemsize}")


def assert_same_bits(result, expected):
    assert result.dtype == expected.dtype
    np.testing.assert_array_equal(bits(result), bits(expected))
