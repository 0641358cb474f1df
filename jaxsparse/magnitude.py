"""NVIDIA ASP's vocabulary for arrays: patterns, groups and magnitude masks.

The names are those of the `magnitude` module of NVIDIA Model Optimizer. The functions
are pure: they take and return arrays, and run under `jax.jit` and `jax.vmap`.
"""

import math
import re

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from jaxsparse._patterns import (
    NM,
    PatternLike,
    as_pattern,
    count_true,
    enumerate_patterns,
    group_axis,
    is_zero,
    magnitude_mask,
)


#: The largest table of patterns, in bytes.
_MAX_TABLE = 2**30


def get_nmprune_info(pattern: str) -> tuple[bool, int, int]:
    """Reads `n` and `m` from a string such as `"2:4 sparsity"`.

    Args:
      pattern: any string.

    Returns:
      `(True, n, m)`, or `(False, 0, 0)` if the string contains no such pattern. As in
      Model Optimizer, `"2:4"` alone is not one.

    >>> get_nmprune_info("2:4 sparsity")
    (True, 2, 4)
    >>> get_nmprune_info("2:4")
    (False, 0, 0)
    """
    match = re.search(r"(\d+):(\d+) sparsity", pattern)
    return (True, int(match[1]), int(match[2])) if match else (False, 0, 0)


def compute_valid_1d_patterns(m: int, n: int) -> Float32[Array, "patterns m"]:
    """Returns all patterns that keep `n` of `m` positions.

    The mask search does not use them. They are meant for inspection and for searches of
    your own.

    Args:
      m: the size of a group, up to 64.
      n: the number of positions kept.

    Returns:
      A float32 array `[C(m, n), m]` of ones and zeros, in lexicographic order of the
      kept positions: the first row keeps the first `n`.

    Raises:
      ValueError: not `1 <= n <= m <= 64`, or a table of more than 1 GiB.

    >>> compute_valid_1d_patterns(3, 2)
    Array([[1., 1., 0.],
           [1., 0., 1.],
           [0., 1., 1.]], dtype=float32)
    """
    NM(n, m)  # raises if the numbers are out of range
    rows = math.comb(m, n)
    if 4 * rows * m > _MAX_TABLE:
        raise ValueError(
            f"{n}:{m} has {rows:,} patterns, a table of {4 * rows * m / 2**30:,.0f} "
            "GiB: use mn_1d_best, which finds the best pattern without a table"
        )
    return jnp.asarray(enumerate_patterns(n, m))


def reshape_1d(matrix: jax.typing.ArrayLike, m: int) -> tuple[Array, tuple[int, int]]:
    """Splits the rows of a matrix into groups of `m`.

    Args:
      matrix: an array `[h, w]`.
      m: the size of a group.

    Returns:
      The groups, `[h * ceil(w / m), m]`, and the padded shape, `(h, ceil(w / m) * m)`.
      If `w` is not divisible by `m`, the last group of a row is padded with zeros.

    Raises:
      ValueError: `matrix` is not two-dimensional, or `m < 1`.

    >>> groups, padded = reshape_1d(jnp.arange(10.0).reshape(2, 5), 4)
    >>> groups.shape, padded
    ((4, 4), (2, 8))
    """
    matrix = jnp.asarray(matrix)
    if matrix.ndim != 2:
        raise ValueError(
            f"reshape_1d takes a matrix, got shape {matrix.shape}: reshape it to two "
            "axes"
        )
    if m < 1:
        raise ValueError(f"a group must hold at least one weight, got m={m}")
    padded = jnp.pad(matrix, ((0, 0), (0, -matrix.shape[1] % m)))
    groups = padded.size // m
    return padded.reshape(groups, m), (padded.shape[0], padded.shape[1])


def mn_1d_best(matrix: jax.typing.ArrayLike, m: int, n: int) -> Bool[Array, "..."]:
    """Returns the mask that keeps the largest sum of magnitudes in every group.

    Groups lie along the last axis. The pattern with the largest sum keeps the `n`
    largest magnitudes, so magnitudes are ranked exactly and never added. See
    `create_asp_mask` for ties, NaN and infinities.

    Args:
      matrix: real floats or integers, one axis or more. If the size of the last axis is
        not divisible by `m`, the last group is smaller.
      m: the size of a group, up to 64.
      n: the number of weights kept in each group.

    Returns:
      True where the weight is kept, shaped like `matrix`.

    Raises:
      ValueError: not `1 <= n <= m <= 64`, or an array without axes.
      TypeError: a dtype without a magnitude order (complex, bool, keys).

    >>> mn_1d_best(jnp.array([[3.0, -4.0, 1.0, 0.5]]), 4, 1)
    Array([[False,  True, False, False]], dtype=bool)
    """
    return create_asp_mask(matrix, NM(n, m), axis=-1)


def m4n2_1d(mat: jax.typing.ArrayLike) -> Bool[Array, "..."]:
    """Returns the best 2:4 mask with groups along the last axis.

    The same as `mn_1d_best(mat, 4, 2)`.

    >>> m4n2_1d(jnp.array([[3.0, -4.0, 1.0, 0.5]]))
    Array([[ True,  True, False, False]], dtype=bool)
    """
    return mn_1d_best(mat, 4, 2)


def create_asp_mask(
    tensor: jax.typing.ArrayLike,
    pattern: PatternLike = "2:4 sparsity",
    *,
    axis: int | None = None,
) -> Bool[Array, "..."]:
    """Returns the mask that keeps the largest magnitudes of each group.

    The search is exact in every dtype: subnormals are distinct, plus and minus zero
    tie, infinities rank above all finite values, and NaN ranks highest, so neither
    infinities nor NaNs are pruned unnoticed. Of equal magnitudes the lower index is
    kept.

    Args:
      tensor: a weight of real floats or integers, one axis or more. Without x64,
        NumPy's float64 is converted to float32, as everywhere in JAX.
      pattern: `"2:4 sparsity"`, `"2:4"`, `(2, 4)` or `NM(2, 4)`: the number of weights
        kept in a group, and the size of a group.
      axis: the axis along which groups lie, which should be the axis that the matmul
        contracts. The default is the input axis of Flax's Dense and Conv, `-2` (the
        only axis of a vector). Kernels of attention, of `DenseGeneral` and of `Einsum`
        have other shapes: use `plan_sparsity` for them. `axis=1` is the input axis of
        PyTorch's `(out, in)` and `(K, C, R, S)`.

    Returns:
      True where the weight is kept, shaped like `tensor`.

    Raises:
      ValueError: an unknown pattern, an axis out of range or an array without axes.
      TypeError: a dtype without a magnitude order (complex, bool, keys).

    >>> create_asp_mask(jnp.array([[1.0], [-3.0], [0.0], [2.0]]))[:, 0]
    Array([False,  True, False,  True], dtype=bool)
    """
    pattern = as_pattern(pattern)
    if not isinstance(pattern, NM) or pattern.transposable:
        raise TypeError(
            "create_asp_mask searches n:m masks with groups along one axis, got "
            f"{pattern}: use create_masks"
        )
    tensor = jnp.asarray(tensor)
    return magnitude_mask(tensor, pattern, group_axis(tensor.shape, pattern, axis))


@jax.jit
def fill(x: jax.typing.ArrayLike) -> Float32[Array, ""]:
    """Returns the ratio of non-zero elements as a float32 scalar.

    Args:
      x: real floats or integers of any shape. NaN and subnormals are not zero. The
        ratio of an empty array is `0.0`.

    >>> fill(jnp.array([0.0, 1.0, 2.0, -0.0]))
    Array(0.5, dtype=float32)
    """
    x = jnp.asarray(x)
    if x.size == 0:
        return jnp.zeros((), jnp.float32)
    return count_true(~is_zero(x)) / x.size
