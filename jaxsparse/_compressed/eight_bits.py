"""Numbers of eight bits with a scale: symmetric, so that zero stays zero.

The scale of a range maps its largest magnitude to the largest number of the format.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


#: The largest number of each format. That of int8 is symmetric: -128 is not used.
LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0}


def as_eight_bits(dtype: DTypeLike) -> jnp.dtype:
    """Returns the dtype of a format; raises `ValueError` unless it is one."""
    try:
        name = "" if dtype is None else jnp.dtype(dtype).name
    except TypeError:  # it is no dtype at all
        name = ""
    if name not in LARGEST:
        given = name or dtype
        raise ValueError(
            f"weights cannot be quantized to {given!r}: give one of {[*LARGEST]}"
        )
    return jnp.dtype(name)


def absmax_scales(
    x: Float[Array, "..."], dtype: DTypeLike, axes: Sequence[int]
) -> Float[Array, "..."]:
    """Returns the scales of ranges that extend over some axes, which stay, of size 1.

    The scale of zeros is one. That of a range with a NaN or an infinity is not finite,
    so such ranges do not go unseen.
    """
    return scales_of(jnp.max(jnp.abs(x), axis=tuple(axes), keepdims=True), dtype)


def scales_of(largest: Float[Array, "..."], dtype: DTypeLike) -> Float[Array, "..."]:
    """Returns the scales of ranges by their largest magnitudes."""
    one = jnp.ones((), largest.dtype)
    limit = jnp.asarray(LARGEST[jnp.dtype(dtype).name], largest.dtype)
    # By a constant, XLA would not divide but multiply by its rounded reciprocal.
    limits = jnp.where(largest == 0, one, limit)
    scales = jnp.where(largest == 0, one, largest) / limits
    smallest = jnp.asarray(jnp.finfo(scales.dtype).smallest_normal, scales.dtype)
    return jnp.maximum(scales, smallest)  # a subnormal one might be flushed to zero


def round_to_eight_bits(
    x: Float[Array, "..."], scales: Float[Array, "..."], dtype: DTypeLike
) -> Array:
    """Returns `x * (1 / scales)`, clipped and rounded to nearest, ties to even.

    XLA makes that of a division by scales that are broadcast; the kernel does the same.
    """
    limit = jnp.asarray(LARGEST[jnp.dtype(dtype).name], x.dtype)
    scaled = jnp.clip(x * (1 / scales), -limit, limit)
    if jnp.issubdtype(dtype, jnp.integer):
        scaled = jnp.round(scaled)
    return scaled.astype(dtype)


def is_wide_float(dtype: DTypeLike) -> bool:
    """Returns whether it is a float dtype that holds all numbers of both formats."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize >= 2
