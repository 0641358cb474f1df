"""The best N:M mask: the top `n` of every group, found without enumerating patterns.

What a mask keeps is a sum over groups, and over places within a group, so the best
pattern of a group is its `n` highest scores. Ranking them compares integers and never
adds: a sum of weights in float32, let alone in bfloat16, loses the small beside the
large and then picks a wrong pattern.

A place is kept when fewer than `n` others beat it. For the small groups of N:M sparsity
comparing all pairs is cheaper than any sort, and a compiler makes one pass over the
weights of it, if it is asked in the way that suits the machine: see the three functions
that rank.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, UInt, UInt8


def best_mask(
    keys: UInt[Array, "..."], n: int | Int[Array, ""], m: int, axis: int
) -> Bool[Array, "..."]:
    """The mask that keeps the `n` highest keys in every group of `m` along `axis`.

    Args:
      keys: unsigned integers in the order to rank by, of any shape.
      n: how many to keep in a group; may be traced.
      m: the size of a group. A ragged last group is padded with nothing: the padding
        is never kept and never counted.
      axis: the axis along which groups lie, not negative.

    Returns:
      True where the weight is kept, shaped like `keys`; of equal keys the lower index
      is kept.
    """
    size = keys.shape[axis]
    if ragged := -size % m:
        # Zero is the lowest key, and of equal keys the earlier one, a real one, wins.
        padding = [(0, ragged if i == axis else 0) for i in range(keys.ndim)]
        mask = best_mask(jnp.pad(keys, padding), n, m, axis)
        return lax.slice_in_dim(mask, 0, size, axis=axis)

    groups = keys.reshape(*keys.shape[:axis], size // m, m, *keys.shape[axis + 1 :])
    last = axis == keys.ndim - 1
    on_cpu = _rank_at_once if last or m <= 16 else _rank_by_rival
    elsewhere = _rank_by_place if m <= 4 else _rank_by_rival
    rank = lax.platform_dependent(
        groups,
        cpu=partial(on_cpu, axis=axis + 1),
        default=partial(elsewhere, axis=axis + 1),
    )
    return (rank < jnp.asarray(n, jnp.uint8)).reshape(keys.shape)


def _rank_at_once(groups: UInt[Array, "..."], axis: int) -> UInt8[Array, "..."]:
    """All pairs of a group in one reduction, vmapped over the groups.

    On a CPU the fastest, but that of wide groups along other axes than the last one the
    compiler writes the pairs to memory. A GPU's compiler takes seconds to minutes over
    it, for a slow program.
    """

    def rank(keys: UInt[Array, " m"]) -> UInt8[Array, " m"]:
        place = jnp.arange(keys.size, dtype=jnp.uint8)
        rival, mine = keys[None, :], keys[:, None]
        earlier = place[None, :] < place[:, None]
        beats = jnp.where(earlier, rival >= mine, rival > mine)
        return jnp.sum(beats, axis=1, dtype=jnp.uint8)

    for _ in range(axis):  # the axes before the places, the last of them the groups
        rank = jax.vmap(rank)
    for _ in range(groups.ndim - axis - 1):  # the axes behind them
        rank = jax.vmap(rank, in_axes=-1, out_axes=-1)
    return rank(groups)


def _rank_by_rival(groups: UInt[Array, "..."], axis: int) -> UInt8[Array, "..."]:
    """One rival after the other against the whole group: elementwise, soon compiled."""
    place = lax.broadcasted_iota(jnp.uint8, groups.shape, axis)
    rank = jnp.zeros(groups.shape, jnp.uint8)
    for i in range(groups.shape[axis]):
        rival = lax.slice_in_dim(groups, i, i + 1, axis=axis)
        beats = jnp.where(place > i, rival >= groups, rival > groups)
        rank += beats.astype(jnp.uint8)
    return rank


def _rank_by_place(groups: UInt[Array, "..."], axis: int) -> UInt8[Array, "..."]:
    """One place after the other: on a GPU, for groups up to four, as fast as a copy."""
    size = groups.shape[axis]
    keys = [lax.index_in_dim(groups, i, axis, keepdims=False) for i in range(size)]
    ranks = []
    for i, mine in enumerate(keys):
        rank = jnp.zeros(mine.shape, jnp.uint8)
        for j, rival in enumerate(keys):
            if i != j:
                beats = rival >= mine if j < i else rival > mine
                rank += beats.astype(jnp.uint8)
        ranks.append(rank)
    return jnp.stack(ranks, axis)
