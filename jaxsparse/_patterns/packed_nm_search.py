"""The best N:M mask, packed as it is searched.

A byte of a packed mask depends on eight positions or on one group. For groups of 2, 4,
8 and 16 the bytes are computed in the pass that reads the weights, from one array per
position, so the bool mask is never in memory. The GPU kernel for wide groups writes
bytes, too. All other masks are searched first and packed afterwards.
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
from jaxsparse.kernels.export import unless_exported
from jaxsparse.kernels.selection_network import nth_largest, sort


#: The keys of groups: for each position an array with one entry per group.
_Keys = Sequence[Integer[Array, "..."]]


def best_packed_nm_mask(
    ranked: RankKeys, n: int | Int[Array, ""], m: int, axis: int
) -> UInt8[Array, "..."]:
    """Returns `best_nm_mask` packed along `axis`; takes the same arguments."""
    size, word = ranked.bits.shape[axis], math.lcm(m, 8)
    gathered = gather_groups(ranked.bits, word, axis)
    if gathered is not ranked.bits:
        mask = best_packed_nm_mask(ranked._replace(bits=gathered), n, m, axis)
        return sharded_as_mask(mask, ranked.bits)
    if m not in (2, 4, 8, 16, 32, 64) or size % word or ranked.full_range:
        return pack_mask(best_nm_mask(ranked, n, m, axis), axis)
    shape = packed_shape(ranked.bits.shape, axis)
    words = ranked._replace(bits=split_groups(ranked.bits, word, axis))

    def search_packed(bits, keep):
        packed = _bytes(words._replace(bits=bits).keys, n, m, axis + 1, keep)
        return packed.reshape(shape)

    def search_and_pack(bits):
        merged = ranked._replace(bits=bits.reshape(ranked.bits.shape))
        return pack_mask(best_nm_mask(merged, n, m, axis), axis)

    searches: dict[str, Callable[[Array], Array]] = {"default": search_and_pack}
    if m <= 16:  # for wider groups `search_and_pack` was faster on CPUs
        searches["cpu"] = partial(search_packed, keep=_keep_with_ties)
        searches["default"] = partial(search_packed, keep=_keep_distinct)
    if m > 8 and isinstance(n, int) and nm_kernel.supports(words.bits, axis + 1):
        kernel = lambda bits: nm_kernel.nm_mask_on_gpu(
            words._replace(bits=bits), n, axis + 1, packed=True
        ).reshape(shape)
        searches["cuda"] = partial(unless_exported, kernel, searches["default"])
    return lax.platform_dependent(words.bits, **searches)


def _bytes(
    keys: Integer[Array, "..."],
    n: int | Int[Array, ""],
    m: int,
    axis: int,
    keep: Callable[..., list[Array]],
) -> UInt8[Array, "..."]:
    """Returns the packed mask of words, of 8 positions or more, along `axis`."""
    positions = range(keys.shape[axis])
    by_position = [lax.index_in_dim(keys, i, axis, keepdims=False) for i in positions]
    kept = [k for i in positions[::m] for k in keep(by_position[i : i + m], n)]
    packed = []
    for i in positions[::8]:
        bits = [k.astype(jnp.uint8) << j for j, k in enumerate(kept[i : i + 8])]
        packed.append(reduce(jnp.bitwise_or, bits))
    return jnp.stack(packed, axis)


def _keep_distinct(keys: _Keys, n: int | Int[Array, ""]) -> list[Bool[Array, "..."]]:
    """Returns for each position whether it is kept, with the position in the key.

    Keys of 16 bits leave room for the position below them, so no two are equal. A GPU
    computes with 32 bits anyway.
    """
    if keys[0].dtype.itemsize > 2:
        return _keep_with_ties(keys, n)
    last = len(keys) - 1
    keys = [(key.astype(jnp.int32) << 8) | (last - i) for i, key in enumerate(keys)]
    threshold = _nth_largest(keys, n)
    return [key >= threshold for key in keys]


def _keep_with_ties(keys: _Keys, n: int | Int[Array, ""]) -> list[Bool[Array, "..."]]:
    """Returns for each position whether it is kept; of equal keys the first are.

    Keys stay as narrow as they are: a CPU's vector registers hold more of them.
    """
    threshold = _nth_largest(keys, n)
    above = [key > threshold for key in keys]
    target = n if isinstance(n, int) else n.astype(threshold.dtype)
    room = target - sum(is_above.astype(threshold.dtype) for is_above in above)
    kept = []
    for key, is_above in zip(keys, above, strict=True):
        ties = key == threshold
        kept.append(is_above | (ties & (room > 0)))
        room -= ties.astype(threshold.dtype)
    return kept


def _nth_largest(keys: _Keys, n: int | Int[Array, ""]) -> Integer[Array, "..."]:
    if isinstance(n, int):
        return nth_largest(keys, n, jnp.minimum, jnp.maximum)
    ordered = sort(keys, jnp.minimum, jnp.maximum)
    pick = lambda chosen, i: jnp.where(n > i, ordered[i], chosen)
    return reduce(pick, range(1, len(ordered)), ordered[0])
