"""Where the kept weights of every group are, in as few bits as they need.

The layout, to the bit, for groups of `m` along an axis, of which `n` are kept:

- Every group has exactly `n` slots, whose places in the group ascend. Where a mask
  keeps fewer, the lowest places that it does not keep fill up.
- Each group has a code. A place takes 2 bits in groups of 4 and 4 bits in wider ones.
  If the places of all slots fit in `m` bits, they are the code, that of slot 0 lowest;
  otherwise it has a bit for each place, that of place 0 lowest, set where there is a
  slot. So a code has `c = min(2 * n, m)` or `min(4 * n, m)` bits.
- The codes of all groups follow each other along the same axis: bit `b` of group `g` is
  bit `(g * c + b) % 8` of byte `(g * c + b) // 8`. The last byte ends in zeros.

Why so. The other axes stay as they are: for the usual `[k, out]`, threads that work on
neighbouring outputs read neighbouring bytes. The code of 2:4 is the four bits that
sparse tensor cores read, and PyTorch's metadata are the same bytes in another order. A
bit for each place is what a packed mask is everywhere in this library, and for 4:8 and
8:16 it is half of what places would take, and as little as whole bytes allow.
"""

from functools import reduce
from operator import or_

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, UInt8

from jaxsparse._patterns import (
    NM,
    group_positions,
    iota_along,
    merge_groups,
    pack_mask,
)


#: How many bits a place in a group takes, by the size of the group.
POSITION_BITS = {4: 2, 8: 4, 16: 4}


def code_bits(pattern: NM) -> int:
    """How many bits the code of a group has."""
    return min(pattern.n * POSITION_BITS[pattern.m], pattern.m)


def code_shape(shape: tuple[int, ...], pattern: NM, axis: int) -> tuple[int, ...]:
    """The shape of the codes of a weight of `shape`, in bytes."""
    size = -(-(shape[axis] // pattern.m) * code_bits(pattern) // 8)
    return (*shape[:axis], size, *shape[axis + 1 :])


def encode(slots: list[Array], pattern: NM, axis: int) -> UInt8[Array, "..."]:
    """The codes of all groups, from what `find_slots` found."""
    if not _stores_places(pattern):
        taken = jnp.stack(slots, axis + 1) < pattern.n
        return pack_mask(merge_groups(taken, axis), axis)
    behind = slots[0].ndim - axis - 1
    places = jnp.zeros((), jnp.uint8)
    for i, slot in enumerate(slots):
        here = jnp.expand_dims(slot, axis + 1) == iota_along(pattern.n, behind)
        places = jnp.where(here, jnp.uint8(i), places)
    code = merge_groups(_bits(places, POSITION_BITS[pattern.m], axis + 1), axis + 1)
    return pack_mask(merge_groups(code.astype(jnp.bool_), axis), axis)


def decode(
    codes: UInt8[Array, "..."], pattern: NM, groups: int, axis: int
) -> list[UInt8[Array, "..."]]:
    """What was encoded: the slot at each place, or a number that no slot has."""
    width = code_bits(pattern)
    # Not by jnp.unpackbits, which cannot do arrays without places along other axes.
    bits = merge_groups(_bits(codes, 8, axis), axis)
    code = group_positions(
        lax.slice_in_dim(bits, 0, groups * width, axis=axis), width, axis
    )
    if not _stores_places(pattern):
        return _number_slots([bit.astype(jnp.bool_) for bit in code])
    size = POSITION_BITS[pattern.m]
    places = [
        reduce(or_, (bit << jnp.uint8(b) for b, bit in enumerate(code[j : j + size])))
        for j in range(0, width, size)
    ]
    taken = [reduce(or_, (place == i for place in places)) for i in range(pattern.m)]
    return _number_slots(taken)


def find_slots(
    kept: Bool[Array, "..."], pattern: NM, axis: int
) -> list[UInt8[Array, "..."]]:
    """The slot at each place of the groups of a mask, or a number that no slot has.

    Of a group that keeps too many, the first have slots.
    """
    places = group_positions(kept, pattern.m, axis)
    before = _counts(places)
    taken = [
        jnp.where(mine, before[i], i - before[i] + before[-1]) < pattern.n
        for i, mine in enumerate(places)
    ]
    return _number_slots(taken)


def _bits(x: UInt8[Array, "..."], count: int, axis: int) -> UInt8[Array, "..."]:
    """The lowest bits of numbers, along a new axis behind this one."""
    return jnp.expand_dims(x, axis + 1) >> iota_along(count, x.ndim - axis - 1) & 1


def _stores_places(pattern: NM) -> bool:
    return pattern.n * POSITION_BITS[pattern.m] <= pattern.m


def _number_slots(taken: list[Array]) -> list[UInt8[Array, "..."]]:
    nothing = jnp.uint8(255)
    counts = _counts(taken)[:-1]
    return [jnp.where(x, i, nothing) for x, i in zip(taken, counts, strict=True)]


def _counts(kept: list[Array]) -> list[UInt8[Array, "..."]]:
    """How many are True before each place, and in all."""
    counts = [jnp.zeros_like(kept[0], jnp.uint8)]  # sharded alike, too
    for mine in kept:
        counts.append(counts[-1] + mine.astype(jnp.uint8))
    return counts
