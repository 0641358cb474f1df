"""Transpose and reshape of compressed weights as they are stored."""

import math
from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn
from jaxtyping import Array

from jaxsparse._compressed.compressed_array import Compressed, compressed_shapes
from jaxsparse._compressed.indices import code_bits


def transpose(weight: Compressed, permutation: Sequence[int]) -> Compressed:
    """Returns the weight with its axes permuted."""
    axis = list(permutation).index(weight.axis + weight.ndim) - weight.ndim
    moved = jax.tree.map(lambda x: x.transpose(permutation), weight)
    return replace(moved, axis=axis)


def reshape(weight: Compressed, shape: tuple[int, ...]) -> Compressed | None:
    """Returns the weight with another shape, or None if it must be decompressed.

    It is reshaped if no group and no byte of `indices` is split between two indices of
    another axis.
    """
    old_shape, pattern = weight.shape, weight.pattern
    trailing = math.prod(old_shape[weight.axis + weight.ndim + 1 :])
    group_axes = [
        axis
        for axis, size in enumerate(shape)
        if size > 1 and math.prod(shape[axis + 1 :]) == trailing
    ]
    if math.prod(shape) != math.prod(old_shape) or not group_axes:
        return None
    axis = group_axes[0]
    for size in (old_shape[weight.axis], shape[axis]):
        if size % pattern.m or size // pattern.m * code_bits(pattern) % 8:
            return None
    values, indices = compressed_shapes(shape, pattern, axis)
    return replace(
        weight,
        values=weight.values.reshape(values),
        indices=weight.indices.reshape(indices),
        scales=_reshape_scales(weight, shape, axis) if weight.is_quantized else None,
        axis=axis - len(shape),
    )


def repeat_scales(weight: Compressed, axes: int) -> Compressed:
    """Returns the weight with scales along so many leading axes of all its arrays."""
    if not weight.is_quantized:
        return weight
    shape = (*weight.shape[:axes], *weight.scales.shape[axes:])
    return replace(weight, scales=jnp.broadcast_to(weight.scales, shape))


def reshapes_row_major(eqn: JaxprEqn) -> bool:
    """Returns whether an equation reshapes in row-major order, without a sharding."""
    name, params = eqn.primitive.name, eqn.params
    permuted = name == "reshape" and params["dimensions"] is not None
    return name in _RESHAPES and not permuted and params.get("sharding") is None


_RESHAPES = frozenset(["broadcast_in_dim", "expand_dims", "reshape", "squeeze"])


def _reshape_scales(weight: Compressed, shape: tuple[int, ...], axis: int) -> Array:
    """Returns the scales of a weight that is reshaped, given its new group axis."""
    old_axis = weight.axis % weight.ndim
    *leading, k = weight.shape[: old_axis + 1]
    trailing = weight.shape[old_axis + 1 :]
    scales = weight.scales
    groups = scales.shape[old_axis]
    if math.prod(scales.shape[: old_axis + 1]) == 1:  # one for each output
        scales = jnp.broadcast_to(scales, (*[1] * (old_axis + 1), *trailing))
        return scales.reshape(*[1] * (axis + 1), *shape[axis + 1 :])
    # As many inputs have a scale as share one before and after.
    size = math.gcd(k // groups, shape[axis])
    scales = jnp.expand_dims(scales, old_axis + 1)
    repeats = k // groups // size
    scales = jnp.broadcast_to(scales, (*leading, groups, repeats, *trailing))
    return scales.reshape(*shape[:axis], shape[axis] // size, *shape[axis + 1 :])
