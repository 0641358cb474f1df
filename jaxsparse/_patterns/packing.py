"""Packed masks: one bit per weight, eight weights along an axis to a byte.

The first weight is in the lowest bit, as in `jnp.packbits(..., bitorder="little")`.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, UInt8

from jaxsparse._patterns.groups import merge_groups
from jaxsparse._sharding import gather_groups, reshard_like
from jaxsparse._trees import is_array


def packed_shape(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Returns the shape of a mask packed along `axis`.

    If the size of the axis is not divisible by 8, the last byte is padded with zero
    bits.
    """
    return (*shape[:axis], -(-shape[axis] // 8), *shape[axis + 1 :])


def packed_axis(packed: tuple[int, ...], shape: tuple[int, ...]) -> int | None:
    """Returns the axis along which a mask of `shape` was packed to shape `packed`.

    The shapes decide. Packing shortens its axis unless the size of the axis is 0 or 1,
    and all axes of these sizes pack to the same bytes.

    Returns:
      The axis, or None if no axis of `shape` packs to `packed`.
    """
    axes = [i for i in range(len(shape)) if packed_shape(shape, i) == packed]
    return axes[0] if axes else None


def pack_mask(mask: Bool[Array, "..."], axis: int) -> UInt8[Array, "..."]:
    """Packs a bool mask along `axis`.

    Over the explicit axes of a mesh the mask is gathered first if shards along `axis`
    would split a byte.
    """
    gathered = gather_groups(mask, 8, axis)
    return jnp.packbits(gathered, axis=axis, bitorder="little")


def unpack_mask(
    mask: Bool[Array, "..."] | UInt8[Array, "..."], shape: tuple[int, ...]
) -> Bool[Array, "..."]:
    """Returns the bool mask of `shape`, given as it is or packed along any axis."""
    if mask.dtype == jnp.bool_:
        return mask
    axis = packed_axis(mask.shape, shape)
    assert axis is not None, "the caller checks that the mask fits"
    sizes = [8 if i == axis + 1 else 1 for i in range(mask.ndim + 1)]
    powers = np.array([1 << bit for bit in range(8)], np.uint8).reshape(sizes)
    bits = merge_groups(jnp.expand_dims(mask, axis + 1) & powers, axis)
    return lax.slice_in_dim(bits, 0, shape[axis], axis=axis) != 0


def as_bool(mask: ArrayLike, weight: Array) -> Bool[Array, "..."]:
    """Returns a mask, bool or packed, as bool and sharded like its weight."""
    return reshard_like(unpack_mask(jnp.asarray(mask), weight.shape), weight)


def check_mask(mask: Any, shape: tuple[int, ...], *, name: str) -> None:
    """Raises unless a mask fits a weight.

    Args:
      mask: what the caller gave as the mask.
      shape: the shape of the weight.
      name: the weight in the words of the error, such as `leaf 'mlp/kernel'`.

    Raises:
      TypeError: the mask is not an array, or its dtype is neither bool nor uint8.
      ValueError: the mask is neither of `shape` nor packed along one of its axes.
    """
    if not is_array(mask):
        raise TypeError(
            f"the mask of {name} of shape {shape} is {mask!r}: give a bool array "
            "(True = kept), a packed uint8 array, or None for a leaf that stays dense"
        )
    if mask.dtype not in (jnp.bool_, jnp.uint8):
        raise TypeError(
            f"the mask of {name} of shape {shape} has dtype {mask.dtype}: give bool "
            "(True = kept) or packed uint8"
        )
    if mask.dtype == jnp.bool_:
        fits = mask.shape == shape
    else:
        fits = packed_axis(mask.shape, shape) is not None
    if not fits:
        packed = dict.fromkeys(packed_shape(shape, i) for i in range(len(shape)))
        raise ValueError(
            f"a mask of shape {mask.shape} and dtype {mask.dtype} does not fit {name} "
            f"of shape {shape}: give bool of that shape, or uint8 packed along one "
            f"axis, of shape {' or '.join(map(str, packed))}"
        )
