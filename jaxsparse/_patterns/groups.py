"""Splits an axis into groups of `m` positions, and merges them again."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, UInt8

from jaxsparse._patterns.pattern import NM


def split_groups(x: Array, m: int, axis: int) -> Array:
    """Splits `axis` into groups of `m`; their positions become axis `axis + 1`."""
    return x.reshape(*x.shape[:axis], x.shape[axis] // m, m, *x.shape[axis + 1 :])


def group_positions(x: Array, m: int, axis: int) -> list[Array]:
    """Returns for each position of groups of `m` an array with one entry per group."""
    groups = split_groups(x, m, axis)
    return [lax.index_in_dim(groups, i, axis + 1, keepdims=False) for i in range(m)]


def merge_groups(groups: Array, axis: int) -> Array:
    """Merges groups along `axis`, whose positions lie along the next axis, into one."""
    size = groups.shape[axis] * groups.shape[axis + 1]
    return groups.reshape(*groups.shape[:axis], size, *groups.shape[axis + 2 :])


def iota_along(count: int, axis: int, ndim: int) -> UInt8[Array, "..."]:
    """Returns 0 to `count - 1` along one of `ndim` axes; all others have size 1."""
    sizes = [count if i == axis else 1 for i in range(ndim)]
    return jnp.arange(count, dtype=jnp.uint8).reshape(sizes)


def group_axis(shape: tuple[int, ...], pattern: NM, axis: int | None) -> int:
    """Returns the group axis of one weight as a non-negative number.

    Args:
      shape: the shape of the weight.
      pattern: the pattern, for the error.
      axis: the axis that the caller gave; None is `-2`, or the only axis of a vector.

    Raises:
      ValueError: a scalar, or an axis out of range.
    """
    if not shape:
        raise ValueError(
            f"a scalar has no axis for groups of {pattern}: give an array with at "
            "least one axis"
        )
    if axis is None:
        axis = -2 if len(shape) > 1 else -1
    if not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"axis {axis} is out of range for a weight of shape {shape}: "
            f"give one from {-len(shape)} to {len(shape) - 1}"
        )
    return axis % len(shape)
