"""Masks of wide groups on NVIDIA GPUs of compute capability 9 and later.

XLA computes each element of a mask separately, so it reads and ranks a group once for
each of its positions. In the kernel, `kernels.nm_mask`, a thread reads its groups once,
selects in registers and writes the mask, as bytes or as bits. This module gives the
kernel its rules for JAX transformations: `vmap` adds an axis, and arrays that are
sharded along any axis but that of the positions are masked shard by shard.
"""

import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Integer, UInt8

from jaxsparse._patterns.ranking import RankKeys
from jaxsparse._sharding import is_automatic, partition_unary
from jaxsparse.kernels.device import compute_capability


def supports(groups: Integer[Array, "..."], axis: int) -> bool:
    """Whether the kernel can search the masks of these groups on this machine.

    XLA searches them inside `shard_map` and over the explicit axes of a mesh, since a
    Pallas kernel does not declare how its results are sharded.

    Args:
      groups: the bits to rank.
      axis: the axis of the positions.
    """
    return (
        is_automatic(groups)
        and groups.shape[axis] in (8, 16, 32, 64)
        and groups.size > 0
        and groups.dtype in (jnp.int8, jnp.int16, jnp.int32)
        and compute_capability()[0] >= 9
    )


def nm_mask_on_gpu(
    ranked: RankKeys, n: int, axis: int, *, packed: bool = False
) -> Bool[Array, "..."] | UInt8[Array, "..."]:
    """Returns the mask that keeps the `n` highest keys of every group.

    Args:
      ranked: groups of 8, 16, 32 or 64 positions, of up to 32 bits, of any shape.
      n: the number of weights kept in each group.
      axis: the axis of the positions.
      packed: whether to return eight positions of a group as one byte, lowest bit
        first.

    Returns:
      The mask, shaped like the groups; packed, with an eighth of the positions.
    """

    def batching_rule(_, __, groups):
        batch = ranked._replace(bits=groups)
        return nm_mask_on_gpu(batch, n, axis + 1, packed=packed), True

    def search_shard(groups):
        from jaxsparse.kernels.nm_mask import nm_mask  # importing Pallas takes a second

        options = {
            "bit_mask": ranked.bit_mask,
            "max_key": ranked.max_key,
            "packed": packed,
        }
        return nm_mask(groups, n=n, axis=axis, **options)

    axes = [f"a{i}" for i in range(ranked.bits.ndim)]
    mask_axes = [*axes[:axis], "positions", *axes[axis + 1 :]]
    rule = f"{' '.join(axes)} -> {' '.join(mask_axes)}"
    search = custom_vmap(
        partition_unary(search_shard, rule, replicated=(axes[axis], "positions"))
    )
    search.def_vmap(batching_rule)
    return search(ranked.bits)
