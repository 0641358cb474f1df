"""The best N:M mask: the top `n` scores of every group, without enumerating patterns.

The total score that a mask keeps is a sum over groups and over positions, so the best
pattern of a group keeps its `n` highest scores. The search ranks scores by comparing
integers and never adds them: in a float32 sum, let alone a bfloat16 one, small weights
are lost beside large ones, and a wrong pattern may win.

A position is kept if fewer than `n` others outrank it. In groups this small, comparing
all pairs is cheaper than any sort, and XLA fuses the comparisons into one pass over the
weights. Which formulation it fuses depends on the backend, hence three functions that
rank. Wide groups on recent NVIDIA GPUs use the kernel of `nm_kernel`.
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
from jaxsparse.kernels.export import unless_exported


def best_nm_mask(
    ranked: RankKeys, n: int | Int[Array, ""], m: int, axis: int
) -> Bool[Array, "..."]:
    """Returns the mask that keeps the `n` highest keys of every group along `axis`.

    Args:
      ranked: the keys, of any shape.
      n: the number of weights kept in each group; may be traced.
      m: the size of a group. If the size of the axis is not divisible by `m`, the last
        group is smaller: padding is never kept and never counted.
      axis: the axis along which groups lie, not negative.

    Returns:
      True where the weight is kept, shaped like `ranked`. Of equal keys the lower index
      is kept.
    """
    bits, size = ranked.bits, ranked.bits.shape[axis]
    gathered = gather_groups(bits, m, axis)
    if gathered is not bits:
        mask = best_nm_mask(ranked._replace(bits=gathered), n, m, axis)
        return reshard_like(mask, bits)
    if pad := -size % m:
        # The padding has the lowest key and comes last, so it loses every tie.
        padding = [(0, pad if i == axis else 0) for i in range(bits.ndim)]
        padded = jnp.pad(bits, padding, constant_values=ranked.padding)
        mask = best_nm_mask(ranked._replace(bits=padded), n, m, axis)
        return lax.slice_in_dim(mask, 0, size, axis=axis)

    groups = split_groups(bits, m, axis)
    is_last = axis == bits.ndim - 1
    on_cpu = _rank_all_pairs if is_last or m <= 16 else _rank_by_rival
    default = _rank_by_position if m <= 4 else _rank_by_rival
    searches: dict[str, Callable[[Array], Array]] = {
        platform: partial(_top, n=n, rank=partial(rank, axis=axis + 1), ranked=ranked)
        for platform, rank in (("cpu", on_cpu), ("default", default))
    }
    if isinstance(n, int) and nm_kernel.supports(groups, axis + 1):
        kernel = lambda groups: nm_kernel.nm_mask_on_gpu(
            ranked._replace(bits=groups), n, axis + 1
        )
        searches["cuda"] = partial(unless_exported, kernel, searches["default"])
    return lax.platform_dependent(groups, **searches).reshape(bits.shape)


def magnitude_mask(weight: Array, pattern: NM, axis: int) -> Bool[Array, "..."]:
    """Returns the mask that keeps the largest magnitudes of each group.

    Args:
      weight: real floats or integers, of any shape.
      pattern: the n:m pattern.
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


def _rank_all_pairs(groups: Integer[Array, "..."], axis: int) -> Integer[Array, "..."]:
    """Ranks by all pairs of a group in one reduction, vmapped over the groups.

    The fastest on a CPU, except for wide groups along any but the last axis, whose
    pairs the compiler writes to memory. For a GPU it takes seconds to minutes to
    compile and runs slowly.
    """
    size = groups.shape[axis]

    def rank(keys: Integer[Array, " m"]) -> Integer[Array, " m"]:
        position = jnp.arange(size)
        total = jnp.zeros(size, keys.dtype)
        for i in range(0, size, 8):  # the compiler does not unroll longer reductions
            rivals = slice(i, i + 8)
            earlier = position[None, rivals] < position[:, None]
            beats = _beats(keys[None, rivals], keys[:, None], earlier)
            total += jnp.sum(beats, axis=1, dtype=keys.dtype)
        return total

    for _ in range(axis):  # the axes before the positions, the last is that of groups
        rank = jax.vmap(rank)
    for _ in range(groups.ndim - axis - 1):  # the axes after the positions
        rank = jax.vmap(rank, in_axes=-1, out_axes=-1)
    return rank(groups)


def _rank_by_rival(groups: Integer[Array, "..."], axis: int) -> Integer[Array, "..."]:
    """Compares one position at a time with the whole group: quick to compile."""
    position = lax.broadcasted_iota(groups.dtype, groups.shape, axis)
    rank = jnp.zeros_like(groups)
    for i in range(groups.shape[axis]):
        rival = lax.slice_in_dim(groups, i, i + 1, axis=axis)
        rank += _beats(rival, groups, position > i).astype(rank.dtype)
    return rank


def _rank_by_position(
    groups: Integer[Array, "..."], axis: int
) -> Integer[Array, "..."]:
    """Ranks one position at a time: as fast as a copy for groups up to 4 on a GPU."""
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
    """Whether a rival's key is higher, or equal and at an earlier position."""
    if jnp.issubdtype(mine.dtype, jnp.signedinteger):  # adding 1 does not overflow
        return rival + earlier.astype(mine.dtype) > mine
    return jnp.where(earlier, rival >= mine, rival > mine)
