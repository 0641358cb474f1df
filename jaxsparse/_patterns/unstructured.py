"""The highest scores of whole arrays, wherever they are: exact, without a sort.

The threshold is found bit by bit, the highest bit first: how many keys lie at or above
a candidate decides whether the bit is set. So is the place up to which scores that
equal the threshold are kept. Every step is one pass that reads the keys and adds up
truths, without temporaries: it shards like any sum, spans several arrays as easily as
one, and takes a number of kept weights that is traced.
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
    """The masks that keep the highest keys of several arrays together.

    Args:
      ranked: what to rank, arrays of any shapes whose keys have one dtype.
      kept: how many to keep of all arrays together; may be traced.

    Returns:
      True where a place is kept, one mask an array. Of equal keys those in earlier
      arrays are kept, and within an array those of lower flat index.

    Raises:
      ValueError: 2**32 places or more, which the counts could not hold.
    """
    sizes = [one.bits.size for one in ranked]
    if sum(sizes) >= 2**32:
        raise ValueError(
            f"one threshold for {sum(sizes)} weights: more than 2**32 - 1 are not "
            "supported; give leaves sparsities of their own"
        )
    kept = jnp.asarray(kept).astype(jnp.uint32)
    keys = [_as_unsigned(one) for one in ranked]
    dtype = keys[0].dtype
    threshold = _largest(
        dtype, 8 * dtype.itemsize, lambda t: _count([k >= t for k in keys]) >= kept
    )
    equal = [k == threshold for k in keys]
    room = kept - _count([k > threshold for k in keys])
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    places = [_flat_index(k.shape, s) for k, s in zip(keys, starts, strict=True)]

    def first_to_go():
        before = lambda t: [e & (p < t) for e, p in zip(equal, places, strict=True)]
        return _largest(
            jnp.dtype("uint32"),
            sum(sizes).bit_length(),
            lambda t: _count(before(t)) <= room,
        )

    # Of the equal ones all before this place are kept; mostly that is all of them.
    everything = jnp.asarray(sum(sizes), jnp.uint32)
    end = lax.cond(_count(equal) == room, lambda: everything, first_to_go)
    return [
        ((k > threshold) | (e & (p < end))) & (kept > 0)
        for k, e, p in zip(keys, equal, places, strict=True)
    ]


def best_row_mask(
    ranked: RankKeys, kept: int | Int[Array, ""], rows: Sequence[int]
) -> Bool[Array, "..."]:
    """The mask that keeps the highest keys of every row.

    Args:
      ranked: what to rank, of any shape.
      kept: how many to keep of each row; may be traced.
      rows: the axes along which rows lie side by side; a row is what is left.

    Returns:
      True where a place is kept, shaped like `ranked`; of equal keys the lower index
      is kept.
    """
    bits = ranked.bits
    order = [*rows, *(i for i in range(bits.ndim) if i not in rows)]
    moved = bits.transpose(order)
    best = lambda row: best_unstructured_masks([ranked._replace(bits=row)], kept)[0]
    for _ in rows:  # if they were merged, those that are sharded would be gathered
        best = jax.vmap(best)
    mask = best(moved)
    return mask.transpose([order.index(i) for i in range(bits.ndim)])


def _largest(dtype, bits: int, holds: Callable[[Array], Array]) -> UInt[Array, ""]:
    """The largest number of some bits for which a condition holds that ends once."""

    def set_bit(i, found):
        bit = jnp.asarray(1, dtype) << (bits - 1 - i).astype(dtype)
        return jnp.where(holds(found | bit), found | bit, found)

    return lax.fori_loop(0, bits, set_bit, jnp.zeros((), dtype))


def _count(truths: Sequence[Bool[Array, "..."]]) -> UInt[Array, ""]:
    counts = [jnp.sum(t, dtype=jnp.uint32) for t in truths]
    return sum(counts[1:], counts[0])


def _as_unsigned(ranked: RankKeys) -> UInt[Array, "..."]:
    """The keys in the same order from zero on."""
    keys = ranked.keys
    if ranked.full_range:
        return keys
    unsigned = jnp.dtype(f"uint{8 * keys.dtype.itemsize}")
    sign = jnp.asarray(1 << (8 * keys.dtype.itemsize - 1), unsigned)
    return lax.bitcast_convert_type(keys, unsigned) ^ sign


def _flat_index(shape: tuple[int, ...], start: int) -> UInt[Array, "..."]:
    """Each place's index in the flattened array, counted from `start`."""
    index = jnp.full(shape, start, jnp.uint32)
    for axis in range(len(shape)):
        stride = jnp.asarray(math.prod(shape[axis + 1 :]), jnp.uint32)
        index += lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    return index
