"""The layout of `Compressed.indices`: where the kept weights of each group are.

The layout, to the bit, for groups of `m` along an axis, of which `n` are kept:

- Every group has exactly `n` slots, in ascending order of their positions in the group.
  If a mask keeps fewer than `n`, the lowest positions that it prunes fill the rest.
- Every group has a code. A position takes 2 bits in groups of 4 and 4 bits in groups of
  8 and 16. If the positions of all slots fit in `m` bits, the code is these positions,
  that of slot 0 in the lowest bits. Otherwise the code has one bit for each position,
  that of position 0 lowest, which is set if the position has a slot. So a code has
  `c = min(2 * n, m)` or `min(4 * n, m)` bits.
- The codes of all groups follow each other along the same axis: bit `b` of group `g` is
  bit `(g * c + b) % 8` of byte `(g * c + b) // 8`. The last byte is padded with zeros.

Reasons: The other axes stay as they are, so for the usual `[k, out]`, threads that work
on neighbouring outputs read neighbouring bytes. The code of 2:4 is the four bits that
sparse tensor cores read, and PyTorch's metadata are the same bytes in another order.
One bit for each position is the layout of packed masks everywhere in this library; for
4:8 and 8:16 it takes half of the bits that positions would take.
"""

from functools import reduce
from operator import or_

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, UInt8

from jaxsparse._patterns import NM, group_positions, iota_along, merge_groups, pack_mask


#: The number of bits of a position in a group, by the size of the group.
POSITION_BITS = {4: 2, 8: 4, 16: 4}


def code_bits(pattern: NM) -> int:
    """Returns the number of bits of the code of a group."""
    return min(pattern.n * POSITION_BITS[pattern.m], pattern.m)


def stores_positions(pattern: NM) -> bool:
    """Returns whether a code has the positions of the slots, not a bit for each."""
    return pattern.n * POSITION_BITS[pattern.m] <= pattern.m


def code_shape(shape: tuple[int, ...], pattern: NM, axis: int) -> tuple[int, ...]:
    """Returns the shape of the codes of a weight of `shape`, in bytes."""
    size = -(-(shape[axis] // pattern.m) * code_bits(pattern) // 8)
    return (*shape[:axis], size, *shape[axis + 1 :])


def encode(slots: list[Array], pattern: NM, axis: int) -> UInt8[Array, "..."]:
    """Returns the codes of all groups.

    Args:
      slots: the slot at each position, from `find_slots`.
      pattern: n:m.
      axis: the group axis.
    """
    if not stores_positions(pattern):
        has_slot = jnp.stack(slots, axis + 1) < pattern.n
        return pack_mask(merge_groups(has_slot, axis), axis)
    positions = jnp.zeros((), jnp.uint8)  # of each slot
    for i, slot in enumerate(slots):
        number = iota_along(pattern.n, axis + 1, slot.ndim + 1)
        at_slot = jnp.expand_dims(slot, axis + 1) == number
        positions = jnp.where(at_slot, jnp.uint8(i), positions)
    code = merge_groups(_bits(positions, POSITION_BITS[pattern.m], axis + 1), axis + 1)
    return pack_mask(merge_groups(code.astype(jnp.bool_), axis), axis)


def decode(
    codes: UInt8[Array, "..."], pattern: NM, groups: int, axis: int
) -> list[UInt8[Array, "..."]]:
    """Returns the slot at each position, or 255 at a position without a slot."""
    width = code_bits(pattern)
    # jnp.unpackbits fails for arrays with another axis of size 0.
    bits = merge_groups(_bits(codes, 8, axis), axis)
    code = group_positions(
        lax.slice_in_dim(bits, 0, groups * width, axis=axis), width, axis
    )
    if not stores_positions(pattern):
        return _number_slots([bit.astype(jnp.bool_) for bit in code])
    size = POSITION_BITS[pattern.m]
    positions = [
        reduce(or_, (bit << jnp.uint8(b) for b, bit in enumerate(code[j : j + size])))
        for j in range(0, width, size)
    ]
    has_slot = [
        reduce(or_, (position == i for position in positions)) for i in range(pattern.m)
    ]
    return _number_slots(has_slot)


def find_slots(
    kept: Bool[Array, "..."], pattern: NM, axis: int
) -> list[UInt8[Array, "..."]]:
    """Returns the slot at each position of the groups, or 255 if it has none.

    If a mask keeps more than `n` weights of a group, the first `n` get the slots.
    """
    positions = group_positions(kept, pattern.m, axis)
    before = _cumulative_counts(positions)
    has_slot = [
        jnp.where(keep, before[i], i - before[i] + before[-1]) < pattern.n
        for i, keep in enumerate(positions)
    ]
    return _number_slots(has_slot)


def _bits(x: UInt8[Array, "..."], count: int, axis: int) -> UInt8[Array, "..."]:
    """Returns the lowest bits of each number, along a new axis after `axis`."""
    return jnp.expand_dims(x, axis + 1) >> iota_along(count, axis + 1, x.ndim + 1) & 1


def _number_slots(has_slot: list[Array]) -> list[UInt8[Array, "..."]]:
    no_slot = jnp.uint8(255)
    counts = _cumulative_counts(has_slot)[:-1]
    return [jnp.where(x, i, no_slot) for x, i in zip(has_slot, counts, strict=True)]


def _cumulative_counts(kept: list[Array]) -> list[UInt8[Array, "..."]]:
    """Returns how many are True before each position, and last the total."""
    counts = [jnp.zeros_like(kept[0], jnp.uint8)]  # zeros_like keeps the sharding
    for keep in kept:
        counts.append(counts[-1] + keep.astype(jnp.uint8))
    return counts
