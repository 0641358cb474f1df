"""One step of dynamic sparse training: which weights are dropped, which regrow."""

from functools import partial

import jax
from jaxtyping import Array, Float, UInt8

from jaxsparse._masks import kept_count
from jaxsparse._patterns import (
    NM,
    RankKeys,
    as_bool,
    best_nm_mask,
    best_unstructured_masks,
    pack_mask,
    rank_above,
    rank_by_magnitude,
    rank_within,
)
from jaxsparse._plans import LeafPlan


def moved_mask(
    leaf: LeafPlan,
    weight: Array,
    packed: UInt8[Array, "..."],
    growth: RankKeys,
    dropped: Float[Array, ""],
) -> UInt8[Array, "..."]:
    """The packed mask of a leaf after some of its kept weights gave way to others.

    Args:
      leaf: the leaf's plan.
      weight: the leaf.
      packed: its mask before.
      growth: ranks all weights; the highest of those that are not kept regrow.
      dropped: the fraction of the kept weights that is dropped.
    """
    grouped = isinstance(leaf.pattern, NM)
    # Without the path: alike leaves are traced once.
    static = grouped, leaf.axis, leaf.counts, growth.bit_mask, growth.max_key
    return _move(weight, packed, growth.bits, dropped, static)


@partial(jax.jit, static_argnums=4)
def _move(weight, packed, growth_bits, dropped, static) -> UInt8[Array, "..."]:
    grouped, axis, (total, n), bit_mask, max_key = static
    kept = as_bool(packed, weight)
    all_kept = n * (weight.size // total)
    (survivors,) = best_unstructured_masks(
        [rank_within(rank_by_magnitude(weight), kept)], kept_count(all_kept, 0, dropped)
    )
    ranked = rank_above(RankKeys(growth_bits, bit_mask, max_key), survivors & kept)
    if grouped:
        mask = best_nm_mask(ranked, n, total, axis)
    else:
        (mask,) = best_unstructured_masks([ranked], n)
    return pack_mask(mask, axis)
