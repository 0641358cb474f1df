"""Masks as bits: one bit a weight, eight along an axis to a byte, lowest bit first."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, UInt8

from jaxsparse._patterns.groups import merge_groups
from jaxsparse._sharding import gather_groups, reshard_like


def packed_shape(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The shape of a packed mask; an axis that 8 does not divide ends in zero bits."""
    return (*shape[:axis], -(-shape[axis] // 8), *shape[axis + 1 :])


def packed_axis(packed: tuple[int, ...], shape: tuple[int, ...]) -> int | None:
    """The axis along which a mask of `shape` was packed into one of shape `packed`.

    None where it cannot have been. Shapes say enough: packing shortens its axis unless
    that has one place or none, and then every such axis packs to the same bytes.
    """
    fits = [i for i in range(len(shape)) if packed_shape(shape, i) == packed]
    return fits[0] if fits else None


def pack_mask(mask: Bool[Array, "..."], axis: int) -> UInt8[Array, "..."]:
    """Packs a bool mask along `axis`; what is cut over explicit axes is gathered."""
    whole = gather_groups(mask, 8, axis)
    return jnp.packbits(whole, axis=axis, bitorder="little")


def unpack_mask(
    packed: UInt8[Array, "..."], shape: tuple[int, ...]
) -> Bool[Array, "..."]:
    """The bool mask of `shape` that was packed, along whichever axis, into `packed`."""
    axis = packed_axis(packed.shape, shape)
    assert axis is not None, "the caller checks that the mask fits"
    behind = [1] * (packed.ndim - axis - 1)
    powers = np.array([1 << bit for bit in range(8)], np.uint8).reshape(8, *behind)
    bits = merge_groups(jnp.expand_dims(packed, axis + 1) & powers, axis)
    return lax.slice_in_dim(bits, 0, shape[axis], axis=axis) != 0


def as_bool(mask: ArrayLike, weight: Array) -> Bool[Array, "..."]:
    """A mask, packed or not, as bool, and sharded as its weight is."""
    mask = jnp.asarray(mask)
    kept = mask if mask.dtype == jnp.bool_ else unpack_mask(mask, weight.shape)
    return reshard_like(kept, weight)
