"""The best N:M mask: the top `n` of every group, found without enumerating patterns.

What a mask keeps is a sum over groups, and over places within a group, so the best
pattern of a group is its `n` highest scores. Ranking them compares integers and never
adds: a sum of weights in float32, let alone in bfloat16, loses the small beside the
large and then picks a wrong pattern.

A place is kept when fewer than `n` others beat it. For the small groups of N:M sparsity
comparing all pairs is cheaper than any sort, and a compiler makes one pass over the
weights of it, if it is asked in the way that suits the machine: see the three functions
that rank. Wide groups on recent NVIDIA GPUs have a kernel of their own.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, Integer

from jaxsparse._patterns import nm_kernel
from jaxsparse._patterns.groups import split_groups
from jaxsparse._patterns.pattern import NM
from jaxsparse._patterns.ranking import RankKeys, check_rankable, rank_by_magnitude
from jaxsparse._sharding import gather_groups, reshard_like


def best_nm_mask(
    ranked: RankKeys, n: int | Int[Array, ""], m: int, axis: int
) -> Bool[Array, "..."]:
    """The mask that keeps the `n` highest keys in every group of `m` along `axis`.

    Args:
      ranked: what to rank, of any shape.
      n: how many to keep in a group; may be traced.
      m: the size of a group. A ragged last group is padded with nothing: the padding
        is never kept and never counted.
      axis: the axis along which groups lie, not negative.

    Returns:
      True where the weight is kept, shaped like `ranked`; of equal keys the lower index
      is kept.
    """
    bits, size = ranked.bits, ranked.bits.shape[axis]
    whole = gather_groups(bits, m, axis)
    if whole is not bits:
        mask = best_nm_mask(ranked._replace(bits=whole), n, m, axis)
        return reshard_like(mask, bits)
    if ragged := -size % m:
        # Of equal keys the earlier one, a real one, wins.
        padding = [(0, ragged if i == axis else 0) for i in range(bits.ndim)]
        padded = jnp.pad(bits, padding, constant_values=ranked.lowest)
        mask = best_nm_mask(ranked._replace(bits=padded), n, m, axis)
        return lax.slice_in_dim(mask, 0, size, axis=axis)

    groups = split_groups(bits, m, axis)
    last = axis == bits.ndim - 1
    on_cpu = _rank_at_once if last or m <= 16 else _rank_by_rival
    elsewhere = _rank_by_place if m <= 4 else _rank_by_rival
    paths: dict[str, Callable[[Array], Array]] = {
        name: partial(_top, n=n, rank=partial(rank, axis=axis + 1), ranked=ranked)
        for name, rank in (("cpu", on_cpu), ("default", elsewhere))
    }
    if isinstance(n, int) and nm_kernel.supports(groups, axis + 1):
        paths["cuda"] = lambda groups: nm_kernel.nm_mask_on_gpu(
            ranked._replace(bits=groups), n, axis + 1
        )
    return lax.platform_dependent(groups, **paths).reshape(bits.shape)


def magnitude_mask(weight: Array, pattern: NM, axis: int) -> Bool[Array, "..."]:
    """The mask that keeps the largest magnitudes of each group of one weight.

    Args:
      weight: real floats or integers, of any shape.
      pattern: how many to keep of how many.
      axis: the axis along which groups lie, not negative.

    Raises:
      TypeError: a dtype without a magnitude order (complex, bool, keys).
    """
    check_rankable(weight.dtype)
    return _magnitude_mask(weight, pattern, axis)


@partial(jax.jit, static_argnames=("pattern", "axis"))
def _magnitude_mask(weight: Array, pattern: NM, axis: int) -> Bool[Array, "..."]:
    return best_nm_mask(rank_by_magnitude(weight), pattern.n, pattern.m, axis)


def _top(groups, *, n, rank, ranked: RankKeys) -> Bool[Array, "..."]:
    ranks = rank(ranked._replace(bits=groups).keys)
    return ranks < (n if isinstance(n, int) else n.astype(ranks.dtype))


def _rank_at_once(groups: Integer[Array, "..."], axis: int) -> Integer[Array, "..."]:
    """All pairs of a group in one reduction, vmapped over the groups.

    On a CPU the fastest, but that of wide groups along other axes than the last one the
    compiler writes the pairs to memory. A GPU's compiler takes seconds to minutes over
    it, for a slow program.
    """
    size = groups.shape[axis]

    def rank(keys: Integer[Array, " m"]) -> Integer[Array, " m"]:
        place = jnp.arange(size)
        total = jnp.zeros(size, keys.dtype)
        for i in range(0, size, 8):  # of longer reductions the compiler leaves loops
            rivals = slice(i, i + 8)
            earlier = place[None, rivals] < place[:, None]
            beats = _beats(keys[None, rivals], keys[:, None], earlier)
            total += jnp.sum(beats, axis=1, dtype=keys.dtype)
        return total

    for _ in range(axis):  # the axes before the places, the last of them the groups
        rank = jax.vmap(rank)
    for _ in range(groups.ndim - axis - 1):  # the axes behind them
        rank = jax.vmap(rank, in_axes=-1, out_axes=-1)
    return rank(groups)


def _rank_by_rival(groups: Integer[Array, "..."], axis: int) -> Integer[Array, "..."]:
    """One rival after the other against the whole group: elementwise, soon compiled."""
    place = lax.broadcasted_iota(groups.dtype, groups.shape, axis)
    rank = jnp.zeros_like(groups)
    for i in range(groups.shape[axis]):
        rival = lax.slice_in_dim(groups, i, i + 1, axis=axis)
        rank += _beats(rival, groups, place > i).astype(rank.dtype)
    return rank


def _rank_by_place(groups: Integer[Array, "..."], axis: int) -> Integer[Array, "..."]:
    """One place after the other: on a GPU, for groups up to four, as fast as a copy."""
    size = groups.shape[axis]
    keys = [lax.index_in_dim(groups, i, axis, keepdims=False) for i in range(size)]
    ranks = []
    for i, mine in enumerate(keys):
        rank = jnp.zeros_like(mine)
        for j, rival in enumerate(keys):
            if i != j:
                beats = rival >= mine if j < i else rival > mine
                rank += beats.astype(rank.dtype)
        ranks.append(rank)
    return jnp.stack(ranks, axis)


def _beats(
    rival: Integer[Array, "..."],
    mine: Integer[Array, "..."],
    earlier: Bool[Array, "..."],
) -> Bool[Array, "..."]:
    """Whether a rival's key is higher, or as high and the rival is the earlier one."""
    if jnp.issubdtype(mine.dtype, jnp.signedinteger):  # there is room for one above
        return rival + earlier.astype(mine.dtype) > mine
    return jnp.where(earlier, rival >= mine, rival > mine)
