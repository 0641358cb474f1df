"""The best N:M mask as bits.

A byte of a packed mask depends on eight places or on one group, so for groups of 2, 4,
8 and 16 it is computed from columns of them, lane beside lane, in the pass that reads
the weights: the mask itself is never in memory. Nor is it where the kernel of wide
groups runs; all other masks are found first and packed then.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, Integer, UInt8

from jaxsparse._patterns import nm_kernel
from jaxsparse._patterns.groups import split_groups
from jaxsparse._patterns.nm_search import best_nm_mask
from jaxsparse._patterns.packing import pack_mask, packed_shape
from jaxsparse._patterns.ranking import RankKeys
from jaxsparse._sharding import gather_groups, sharded_as_mask
from jaxsparse.kernels.selection_network import nth_largest, sort


_Columns = Sequence[Integer[Array, "..."]]


def best_packed_nm_mask(
    ranked: RankKeys, n: int | Int[Array, ""], m: int, axis: int
) -> UInt8[Array, "..."]:
    """`best_nm_mask`, packed along `axis`; arguments as there."""
    size, word = ranked.bits.shape[axis], math.lcm(m, 8)
    whole = gather_groups(ranked.bits, word, axis)
    if whole is not ranked.bits:
        mask = best_packed_nm_mask(ranked._replace(bits=whole), n, m, axis)
        return sharded_as_mask(mask, ranked.bits)
    if m not in (2, 4, 8, 16, 32, 64) or size % word or ranked.full_range:
        return pack_mask(best_nm_mask(ranked, n, m, axis), axis)
    shape = packed_shape(ranked.bits.shape, axis)
    groups = ranked._replace(bits=split_groups(ranked.bits, word, axis))

    def by_columns(bits, kept_of):
        found = _bytes(groups._replace(bits=bits).keys, n, m, axis + 1, kept_of)
        return found.reshape(shape)

    def by_mask(bits):
        whole = ranked._replace(bits=bits.reshape(ranked.bits.shape))
        return pack_mask(best_nm_mask(whole, n, m, axis), axis)

    paths: dict[str, Callable[[Array], Array]] = {"default": by_mask}
    if m <= 16:  # with more columns than that `by_mask` was the faster way on CPUs
        paths["cpu"] = partial(by_columns, kept_of=_keep_with_ties)
        paths["default"] = partial(by_columns, kept_of=_keep_distinct)
    if m > 8 and isinstance(n, int) and nm_kernel.supports(groups.bits, axis + 1):
        paths["cuda"] = lambda bits: nm_kernel.nm_mask_on_gpu(
            groups._replace(bits=bits), n, axis + 1, packed=True
        ).reshape(shape)
    return lax.platform_dependent(groups.bits, **paths)


def _bytes(
    keys: Integer[Array, "..."],
    n: int | Int[Array, ""],
    m: int,
    axis: int,
    kept_of: Callable[..., list[Array]],
) -> UInt8[Array, "..."]:
    """The bytes of words of 8 places or more that lie along `axis`."""
    places = range(keys.shape[axis])
    columns = [lax.index_in_dim(keys, i, axis, keepdims=False) for i in places]
    kept = [k for i in places[::m] for k in kept_of(columns[i : i + m], n)]
    found = []
    for i in places[::8]:
        bits = [k.astype(jnp.uint8) << j for j, k in enumerate(kept[i : i + 8])]
        found.append(reduce(jnp.bitwise_or, bits))
    return jnp.stack(found, axis)


def _keep_distinct(columns: _Columns, n) -> list[Bool[Array, "..."]]:
    """Which places of the groups are kept; narrow keys with the place below them.

    So no two are equal. A GPU computes with 32 bits anyway.
    """
    if columns[0].dtype.itemsize > 2:
        return _keep_with_ties(columns, n)
    places = reversed(range(len(columns)))
    keys = [
        (column.astype(jnp.int32) << 8) | place
        for column, place in zip(columns, places, strict=True)
    ]
    limit = _nth_largest(keys, n)
    return [key >= limit for key in keys]


def _keep_with_ties(columns: _Columns, n) -> list[Bool[Array, "..."]]:
    """Which places of the groups are kept: of equal keys the first ones.

    A CPU computes with twice as many keys at once if they are half as wide.
    """
    limit = _nth_largest(columns, n)
    above = [column > limit for column in columns]
    wanted = n if isinstance(n, int) else n.astype(limit.dtype)
    room = wanted - sum(higher.astype(limit.dtype) for higher in above)
    kept = []
    for column, higher in zip(columns, above, strict=True):
        equal = column == limit
        kept.append(higher | (equal & (room > 0)))
        room -= equal.astype(limit.dtype)
    return kept


def _nth_largest(columns: _Columns, n) -> Integer[Array, "..."]:
    if isinstance(n, int):
        return nth_largest(columns, n, jnp.minimum, jnp.maximum)
    ordered = sort(columns, jnp.minimum, jnp.maximum)
    pick = lambda found, i: jnp.where(n > i, ordered[i], found)
    return reduce(pick, range(1, len(ordered)), ordered[0])
