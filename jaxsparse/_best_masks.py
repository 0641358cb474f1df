"""The best mask of every leaf that a plan prunes, whatever its pattern."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, UInt8

from jaxsparse._leaf_plan import LeafPlan, counted_groups
from jaxsparse._packed_search import best_packed_mask
from jaxsparse._packing import pack_mask, unpack_mask
from jaxsparse._pattern import NM
from jaxsparse._schedule import kept_count
from jaxsparse._score import by_magnitude, by_value, only_within
from jaxsparse._search import best_mask
from jaxsparse._sharding import sharded_like
from jaxsparse._tiles import rank_tiles, spread_tiles
from jaxsparse._unstructured import best_unstructured_masks


_Mask = Bool[Array, "..."] | UInt8[Array, "..."]


def best_masks(
    scores: Mapping[str, ArrayLike],
    leaves: Sequence[LeafPlan],
    *,
    progress: Float[Array, ""] | None = None,
    within: Mapping[str, _Mask | None] | None = None,
    packed: bool = False,
    signed: bool = False,
) -> dict[str, _Mask]:
    """The best masks of leaves that a plan prunes, by path.

    Args:
      scores: the weights by path; or scores, which may be negative, where `signed`.
      leaves: the plans of the leaves.
      progress: the way from dense, 0, to the pattern, 1, which may be traced.
      within: masks, bool or packed, whose closed places rank below every open one.
      packed: whether to pack the masks along the group axis.
      signed: whether to rank by value instead of by magnitude.

    Raises:
      TypeError: `within` a mask, integers of 32 bits or more, whose order leaves no
        place below the lowest.
    """
    found: dict[str, _Mask] = {}
    for group, total, kept in counted_groups(leaves):
        paths = [leaf.path for leaf in group]
        if within is not None:
            for leaf in group:
                _check_room(leaf, scores[leaf.path])
        if progress is not None:
            kept = kept_count(total, kept, progress)
        find = _known_masks if isinstance(kept, int) else _traced_masks
        masks = find(
            [scores[path] for path in paths],
            kept,
            None if within is None else [within[path] for path in paths],
            tuple((_group_of(leaf), leaf.axis, leaf.tile) for leaf in group),
            packed,
            signed,
        )
        found |= dict(zip(paths, masks, strict=True))
    return {leaf.path: found[leaf.path] for leaf in leaves}


def as_bool(mask: ArrayLike, weight: Array) -> Bool[Array, "..."]:
    """A mask, packed or not, as bool, and sharded as its weight is."""
    mask = jnp.asarray(mask)
    kept = mask if mask.dtype == jnp.bool_ else unpack_mask(mask, weight.shape)
    return sharded_like(kept, weight)


def _find(scores, kept, within, places, packed: bool, signed: bool) -> list[_Mask]:
    """The masks of leaves that share their count: of one leaf, if it isn't shared."""
    scores = [jnp.asarray(score) for score in scores]
    if within is not None:
        within = [as_bool(w, s) for w, s in zip(within, scores, strict=True)]
    m, axis, _ = places[0]
    if m is not None:
        (score,) = scores
        ranked = by_value(score) if signed else by_magnitude(score)
        ranked = ranked if within is None else only_within(ranked, within[0])
        search = best_packed_mask if packed else best_mask
        return [search(ranked, kept, m, axis)]
    dtype = _common_dtype([score.dtype for score in scores])
    ranked = [
        rank_tiles(
            score.astype(dtype),
            tile,
            signed=signed,
            within=None if within is None else within[i],
        )
        for i, (score, (_, _, tile)) in enumerate(zip(scores, places, strict=True))
    ]
    found = best_unstructured_masks(ranked, kept)
    masks = [
        sharded_like(spread_tiles(mask, tile), score)
        for mask, (_, _, tile), score in zip(found, places, scores, strict=True)
    ]
    if not packed:
        return masks
    return [pack_mask(m, axis) for m, (_, axis, _) in zip(masks, places, strict=True)]


#: A number that is known beforehand finds faster programs than a traced one. A leaf's
#: path is no argument: leaves that are alike share a program.
_known_masks = jax.jit(_find, static_argnums=(1, 3, 4, 5))
_traced_masks = jax.jit(_find, static_argnums=(3, 4, 5))


def _group_of(leaf: LeafPlan) -> int | None:
    """The size of a group, None where the pattern has none."""
    return leaf.pattern.m if isinstance(leaf.pattern, NM) else None


def _common_dtype(dtypes: Sequence[jnp.dtype]) -> jnp.dtype:
    """A dtype in which scores that share a threshold can be compared."""
    if len(set(dtypes)) == 1:
        return dtypes[0]
    wide = any(dtype.itemsize > 4 for dtype in dtypes)
    return jnp.dtype("float64" if wide else "float32")


def _check_room(leaf: LeafPlan, score: ArrayLike) -> None:
    dtype = jnp.asarray(score).dtype
    if jnp.issubdtype(dtype, jnp.integer) and dtype.itemsize > 2:
        raise TypeError(
            f"leaf {leaf.path!r} of shape {leaf.shape} has dtype {dtype}, by which a "
            "mask cannot be refreshed: cast it to float32, or leave it dense by a rule"
        )
