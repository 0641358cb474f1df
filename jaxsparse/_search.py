"""The best N:M mask: the top `n` of every group, found without enumerating patterns.

What a mask keeps is a sum over groups, and over places within a group, so the best
pattern of a group is its `n` highest scores. Ranking them compares integers and never
adds: a sum of weights in float32, let alone in bfloat16, loses the small beside the
large and then picks a wrong pattern.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt


def best_of_group(
    keys: UInt[Array, " m"], n: int | Int[Array, ""]
) -> Bool[Array, " m"]:
    """The `n` highest of one group; of equal keys the lower index is kept.

    A place is kept when fewer than `n` others beat it. All pairs are compared at once:
    for the small groups of N:M sparsity that is cheaper than any sort, and the
    compiler fuses the whole of it into one pass over the weights.
    """
    place = jnp.arange(keys.size, dtype=jnp.uint8)
    rival, mine = keys[None, :], keys[:, None]
    beaten = jnp.where(place[None, :] < place[:, None], rival >= mine, rival > mine)
    return jnp.sum(beaten, axis=1, dtype=jnp.uint8) < jnp.asarray(n, jnp.uint8)


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
      True where the weight is kept, shaped like `keys`.
    """
    size = keys.shape[axis]
    if ragged := -size % m:
        # Zero is the lowest key, and of equal keys the earlier one, a real one, wins.
        padding = [(0, ragged if i == axis else 0) for i in range(keys.ndim)]
        whole = jnp.pad(keys, padding)
        mask = best_mask(whole, n, m, axis)
        return jax.lax.slice_in_dim(mask, 0, size, axis=axis)

    groups = (*keys.shape[:axis], size // m, m, *keys.shape[axis + 1 :])

    def search(group):
        return best_of_group(group, n)

    for _ in range(axis + 1):  # the axes before the groups, and the groups themselves
        search = jax.vmap(search)
    for _ in range(keys.ndim - axis - 1):  # the axes behind them
        search = jax.vmap(search, in_axes=-1, out_axes=-1)
    return search(keys.reshape(groups)).reshape(keys.shape)
