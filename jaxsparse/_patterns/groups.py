"""An axis as groups of `m` positions, and back."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, UInt8

from jaxsparse._patterns.pattern import NM


def split_groups(x: Array, m: int, axis: int) -> Array:
    """Groups of `m` along `axis` as an axis of their own, `axis + 1`."""
    return x.reshape(*x.shape[:axis], x.shape[axis] // m, m, *x.shape[axis + 1 :])


def group_positions(x: Array, m: int, axis: int) -> list[Array]:
    """The places of groups of `m`, each an array with one entry a group."""
    groups = split_groups(x, m, axis)
    return [lax.index_in_dim(groups, i, axis + 1, keepdims=False) for i in range(m)]


def merge_groups(groups: Array, axis: int) -> Array:
    """Groups along `axis`, their entries along the next, one after the other."""
    size = groups.shape[axis] * groups.shape[axis + 1]
    return groups.reshape(*groups.shape[:axis], size, *groups.shape[axis + 2 :])


def iota_along(count: int, behind: int) -> UInt8[Array, "..."]:
    """From 0 on, along an axis with so many behind it."""
    return jnp.arange(count, dtype=jnp.uint8).reshape(count, *[1] * behind)


def group_axis(shape: tuple[int, ...], pattern: NM, axis: int | None) -> int:
    """The axis of groups that was given for one weight, or its default; from 0 on."""
    if not shape:
        raise ValueError(f"a scalar has no axis for groups of {pattern}")
    if axis is None:
        axis = -2 if len(shape) > 1 else -1
    if not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"axis {axis} is out of range for a weight of shape {shape}: "
            f"give one from {-len(shape)} to {len(shape) - 1}"
        )
    return axis % len(shape)
