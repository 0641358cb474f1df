"""The highest scores of whole arrays: exact, without a sort.

The threshold is searched bit by bit, the highest bit first: the number of keys at or
above a candidate decides whether the bit is set. The index up to which scores equal to
the threshold are kept is searched in the same way. Every step is one pass that reads
the keys and counts, without temporaries. So the search shards like any sum, can span
several arrays, and the number of kept weights may be traced.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, UInt

from jaxsparse._patterns.ranking import RankKeys


def best_unstructured_masks(
    ranked: Sequence[RankKeys], kept: int | Int[Array, ""]
) -> list[Bool[Array, "..."]]:
    """Returns the masks that keep the highest keys of several arrays together.

    Args:
      ranked: the keys of arrays of any shapes, of one dtype.
      kept: the number of weights kept in all arrays together; may be traced.

    Returns:
      One mask per array, True where a weight is kept. Of equal keys those in earlier
      arrays are kept, and within an array those of lower flat index.

    Raises:
      ValueError: the arrays have 2**32 elements or more, too many for the counts.
    """
    sizes = [keys.bits.size for keys in ranked]
    total = sum(sizes)
    if total >= 2**32:
        raise ValueError(
            f"one threshold for {total} weights: more than 2**32 - 1 are not "
            "supported; give each leaf its own sparsity"
        )
    kept = jnp.asarray(kept).astype(jnp.uint32)
    unsigned = [_as_unsigned(keys) for keys in ranked]
    dtype = unsigned[0].dtype
    threshold = _largest(
        dtype,
        8 * dtype.itemsize,
        lambda bound: _count([keys >= bound for keys in unsigned]) >= kept,
    )
    ties = [keys == threshold for keys in unsigned]
    room = kept - _count([keys > threshold for keys in unsigned])
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    indices = [_flat_index(x.shape, s) for x, s in zip(unsigned, starts, strict=True)]

    def first_pruned_index():
        before = lambda end: [t & (i < end) for t, i in zip(ties, indices, strict=True)]
        return _largest(
            jnp.dtype("uint32"),
            total.bit_length(),
            lambda end: _count(before(end)) <= room,
        )

    # Ties before index `end` are kept; usually these are all of them.
    keep_all = lambda: jnp.asarray(total, jnp.uint32)
    end = lax.cond(_count(ties) == room, keep_all, first_pruned_index)
    return [
        ((keys > threshold) | (tied & (index < end))) & (kept > 0)
        for keys, tied, index in zip(unsigned, ties, indices, strict=True)
    ]


def best_row_mask(
    ranked: RankKeys, kept: int | Int[Array, ""], rows: Sequence[int]
) -> Bool[Array, "..."]:
    """Returns the mask that keeps the highest keys of every row.

    Args:
      ranked: the keys, of any shape.
      kept: the number of weights kept in each row; may be traced.
      rows: the axes that index rows; a row spans all other axes.

    Returns:
      True where a weight is kept, shaped like `ranked`. Of equal keys the lower index
      is kept.
    """
    bits = ranked.bits
    order = [*rows, *(i for i in range(bits.ndim) if i not in rows)]
    moved = bits.transpose(order)
    best = lambda row: best_unstructured_masks([ranked._replace(bits=row)], kept)[0]
    for _ in rows:  # merging these axes would all-gather sharded ones
        best = jax.vmap(best)
    mask = best(moved)
    return mask.transpose([order.index(i) for i in range(bits.ndim)])


def _largest(dtype, bits: int, holds: Callable[[Array], Array]) -> UInt[Array, ""]:
    """Returns the largest number of `bits` bits for which a condition holds.

    The condition must be monotone: if it holds for a number, it holds for all smaller
    ones.
    """

    def set_bit(i, number):
        bit = jnp.asarray(1, dtype) << (bits - 1 - i).astype(dtype)
        return jnp.where(holds(number | bit), number | bit, number)

    return lax.fori_loop(0, bits, set_bit, jnp.zeros((), dtype))


def _count(masks: Sequence[Bool[Array, "..."]]) -> UInt[Array, ""]:
    """Returns the number of True values in several arrays together."""
    counts = [jnp.sum(mask, dtype=jnp.uint32) for mask in masks]
    return sum(counts[1:], counts[0])


def _as_unsigned(ranked: RankKeys) -> UInt[Array, "..."]:
    """Returns the keys as unsigned integers in the same order."""
    keys = ranked.keys
    if ranked.full_range:
        return keys
    unsigned = jnp.dtype(f"uint{8 * keys.dtype.itemsize}")
    sign = jnp.asarray(1 << (8 * keys.dtype.itemsize - 1), unsigned)
    return lax.bitcast_convert_type(keys, unsigned) ^ sign


def _flat_index(shape: tuple[int, ...], start: int) -> UInt[Array, "..."]:
    """Returns each element's index in the flattened array, counted from `start`."""
    index = jnp.full(shape, start, jnp.uint32)
    for axis in range(len(shape)):
        stride = jnp.asarray(math.prod(shape[axis + 1 :]), jnp.uint32)
        index += lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    return index
