"""Masks of wide groups on NVIDIA GPUs of compute capability 9 and later.

XLA computes each place of a mask for itself, so it reads and ranks a group once for
each of its places. Here a thread reads its groups once, selects in registers and
writes the mask, as bytes or as bits: see `kernels.nm_mask`. This is what makes a kernel
a citizen of JAX: under `vmap` it takes one more axis, and arrays that are sharded along
any axis but that of the places are masked shard by shard.
"""

import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Integer, UInt8

from jaxsparse._patterns.ranking import RankKeys
from jaxsparse._sharding import is_automatic, partition_unary
from jaxsparse.kernels.device import compute_capability


def supports(groups: Integer[Array, "..."], axis: int) -> bool:
    """Whether the kernel can find the masks of these groups, on this machine.

    Not inside `shard_map` and not over the explicit axes of a mesh, where XLA takes
    its place: Pallas tells neither how its results are sharded.
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
    """The mask of the `n` highest keys in every group.

    Args:
      ranked: groups of 8, 16, 32 or 64 places, of up to 32 bits, any shape.
      n: how many to keep.
      axis: the axis of the places.
      packed: whether to return eight places of a group as one byte, lowest bit first.

    Returns:
      The mask, shaped like the groups, or with an eighth of the places.
    """

    def batched(_, __, groups):
        more = ranked._replace(bits=groups)
        return nm_mask_on_gpu(more, n, axis + 1, packed=packed), True

    def locally(groups):
        from jaxsparse.kernels.nm_mask import nm_mask  # Pallas takes a second

        options = {"counted": ranked.counted, "top": ranked.top, "packed": packed}
        return nm_mask(groups, n=n, axis=axis, **options)

    axes = [f"a{i}" for i in range(ranked.bits.ndim)]
    found = [*axes[:axis], "found", *axes[axis + 1 :]]
    rule = f"{' '.join(axes)} -> {' '.join(found)}"
    find = custom_vmap(partition_unary(locally, rule, whole=(axes[axis], "found")))
    find.def_vmap(batched)
    return find(ranked.bits)
