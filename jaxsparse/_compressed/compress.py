"""Compresses one weight: stores the kept values and their positions in the groups."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.dtypes import float0
from jax.typing import ArrayLike
from jaxtyping import Array, UInt8

from jaxsparse._compressed.compressed_array import Compressed
from jaxsparse._compressed.cuda_compress import (
    as_packed,
    cuda_compress,
    unsupported_reason,
)
from jaxsparse._compressed.indices import POSITION_BITS, encode, find_slots
from jaxsparse._patterns import (
    NM,
    PatternLike,
    as_pattern,
    check_mask,
    check_rankable,
    group_axis,
    group_positions,
    iota_along,
    magnitude_mask,
    merge_groups,
    split_groups,
    unpack_mask,
)
from jaxsparse._sharding import gather_groups, reshard_to


def compress(
    w: ArrayLike,
    pattern: PatternLike = "2:4",
    *,
    mask: ArrayLike | None = None,
    axis: int | None = None,
) -> Compressed:
    """Returns an n:m sparse weight stored without its zeros.

    Kept weights are preserved bit for bit, as by `mask_params`, including signed zeros,
    subnormals and NaN payloads. (Both quieten signalling NaNs of narrow floats on a
    CPU.) On an H100 or H200 a kernel compresses 2:4 along axis -2 in one pass, for
    weights in bfloat16 and float16 whose last two sizes are divisible by 8.

    Args:
      w: a weight of any dtype with at least one axis. Without x64, NumPy's float64
        becomes float32 first, as everywhere in JAX.
      pattern: n:m, with an `m` of 4, 8 or 16.
      mask: a bool mask of the weight's shape, True = kept, or a mask packed along one
        axis by `create_masks`. The default is the best mask by magnitude, which leaves
        a weight that obeys the pattern unchanged.
      axis: the axis along which groups lie. The default is the input axis of Flax's
        Dense and Conv, `-2` (the only axis of a vector), as in `create_asp_mask`.

    Returns:
      The compressed weight. If the mask keeps fewer than `n` weights of a group, the
      remaining slots hold plus zero.

    Raises:
      ValueError: the pattern cannot be compressed; the axis is out of range, or its
        size is not divisible by `m`; the mask has another shape, or keeps more than `n`
        weights of a group. The last is checked only if the mask is concrete. If a
        traced mask keeps more, only the first `n` of the group are kept.
      TypeError: the mask is neither bool nor uint8. Without a mask: the dtype has no
        magnitude order, or the pattern is transposable.

    >>> w = jnp.array([[1.0], [-3.0], [0.0], [2.0]])
    >>> compress(w, "2:4").values
    Array([[-3.],
           [ 2.]], dtype=float32)
    """
    w = jnp.asarray(w)
    pattern = as_pattern(pattern)
    shape = f"a weight of shape {w.shape}"
    if not isinstance(pattern, NM) or pattern.m not in POSITION_BITS:
        raise ValueError(
            f"{pattern} cannot be compressed ({shape}): give n:m in groups of 4, 8 or "
            "16, or keep the weight dense"
        )
    axis = group_axis(w.shape, pattern, axis)
    if w.shape[axis] % pattern.m:
        raise ValueError(
            f"axis {axis} of {shape} is not divisible by the {pattern.m} of {pattern}: "
            "pad it with zeros, give another axis, or keep the weight dense"
        )
    if mask is None:
        if pattern.transposable:
            raise TypeError(
                f"the best mask of {pattern} does not follow from groups along axis "
                f"{axis} alone ({shape}): pass mask=, from create_masks"
            )
        check_rankable(w.dtype)
    else:
        mask = _check_mask(mask, w.shape, pattern, axis)
    if axis == w.ndim - 2 and not unsupported_reason(w, pattern, w.dtype):
        values, indices = _by_kernel(pattern, w, mask)
        return Compressed(values, indices, pattern, -2)
    if mask is None:
        mask = magnitude_mask(w, pattern, axis)
    return compress_masked(w, mask, pattern, axis)


def compress_masked(w: Array, mask: Array, pattern: NM, axis: int) -> Compressed:
    """As `compress`, with a mask and a non-negative axis that fit the weight."""
    values = _values_of(w, mask, pattern, axis)
    indices = _indices_of(mask, w.shape, pattern, axis)
    return Compressed(values, indices, pattern, axis - w.ndim)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _by_kernel(pattern: NM, w: Array, mask: Array | None) -> tuple[Array, ...]:
    """Returns values and indices of a weight with groups along -2."""
    return _by_kernel_undifferentiated(pattern, w, mask)


@partial(jax.jit, static_argnames="pattern")
def _by_kernel_undifferentiated(
    pattern: NM, w: Array, mask: Array | None
) -> tuple[Array, ...]:
    def by_xla(w: Array, *mask: Array) -> tuple[Array, ...]:
        axis = w.ndim - 2
        kept = mask[0] if mask else magnitude_mask(w, pattern, axis)
        compressed = compress_masked(w, kept, pattern, axis)
        return compressed.values, compressed.indices

    source, masks = "magnitude", []
    if mask is not None:
        source, *masks = as_packed(mask, w.shape)
    return cuda_compress(by_xla, source, w.dtype, (-2,), w, *masks)


@_by_kernel.defjvp
def _by_kernel_jvp(pattern, primals, tangents):
    (w, mask), axis = primals, primals[0].ndim - 2
    values, indices = _by_kernel(pattern, w, mask)
    kept = magnitude_mask(w, pattern, axis) if mask is None else mask
    by_weight = _values_of(tangents[0], kept, pattern, axis)
    return (values, indices), (by_weight, np.zeros(indices.shape, float0))


# Two programs: XLA on a CPU makes a single one three times as slow as both together.
@partial(jax.jit, static_argnames=("pattern", "axis"))
def _values_of(w: Array, mask: Array, pattern: NM, axis: int) -> Array:
    w = gather_groups(w, pattern.m, axis)
    kept = reshard_to(unpack_mask(mask, w.shape), w)
    slots = find_slots(kept, pattern, axis)
    weights = group_positions(
        jnp.where(kept, w, jnp.zeros((), w.dtype)), pattern.m, axis
    )
    values = jnp.zeros((), w.dtype)
    for slot, weight in zip(slots, weights, strict=True):
        all_slots = iota_along(pattern.n, axis + 1, w.ndim + 1)
        in_slot = jnp.expand_dims(slot, axis + 1) == all_slots
        values = jnp.where(in_slot, jnp.expand_dims(weight, axis + 1), values)
    return merge_groups(values, axis)


@partial(jax.jit, static_argnames=("shape", "pattern", "axis"))
def _indices_of(
    mask: Array, shape: tuple[int, ...], pattern: NM, axis: int
) -> UInt8[Array, "..."]:
    kept = gather_groups(unpack_mask(mask, shape), pattern.m, axis)
    return encode(find_slots(kept, pattern, axis), pattern, axis)


def _check_mask(
    mask: ArrayLike, shape: tuple[int, ...], pattern: NM, axis: int
) -> Array:
    """Returns the mask as an array; raises unless it fits the weight and pattern."""
    array = jnp.asarray(mask)
    check_mask(array, shape, name="a weight")
    if isinstance(mask, Tracer):
        return array
    with jax.ensure_compile_time_eval():  # the mask is concrete, even under a trace
        most = int(max_kept(jnp.asarray(mask), shape, pattern.m, axis))
    if most > pattern.n:
        raise ValueError(
            f"the mask keeps {most} of a group of {pattern.m} along axis {axis} of "
            f"a weight of shape {shape}, which {pattern} does not allow: give the axis "
            "and pattern that the mask was made for"
        )
    return array


@partial(jax.jit, static_argnames=("shape", "m", "axis"))
def max_kept(mask: Array, shape: tuple[int, ...], m: int, axis: int) -> Array:
    """Returns the most weights that a mask, bool or packed, keeps of a group."""
    groups = split_groups(gather_groups(unpack_mask(mask, shape), m, axis), m, axis)
    return jnp.max(jnp.sum(groups, axis + 1, dtype=jnp.uint8), initial=0)
