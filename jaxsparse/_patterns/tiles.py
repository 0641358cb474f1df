"""Tiles: blocks, channels or single weights that are kept or pruned as a unit."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxsparse._patterns.groups import split_groups
from jaxsparse._patterns.ranking import (
    RankKeys,
    rank_by_magnitude,
    rank_by_value,
    rank_within,
    wide_float,
)
from jaxsparse._sharding import gather_groups


def rank_tiles(
    score: jax.typing.ArrayLike,
    tile: Sequence[int],
    *,
    signed: bool,
    within: Bool[Array, "..."] | None = None,
) -> RankKeys:
    """Ranks the tiles of an array.

    Args:
      score: weights, or scores, of any shape.
      tile: the size of a tile along each axis; the size of the axis is divisible by it.
        A single weight is ranked by its bits, a larger tile by the sum of its
        magnitudes or scores, in float32 or, for wider dtypes, float64.
      signed: whether scores are ranked by value instead of by magnitude.
      within: a mask of the weights. Tiles in which it keeps no weight rank lowest.

    Returns:
      One key per tile.
    """
    if math.prod(tile) > 1:
        score = jnp.asarray(score)
        score = score.astype(wide_float(score.dtype))
        score = reduce_tiles(jnp.sum, score if signed else jnp.abs(score), tile)
        within = None if within is None else reduce_tiles(jnp.any, within, tile)
    ranked = rank_by_value(score) if signed else rank_by_magnitude(score)
    return ranked if within is None else rank_within(ranked, within)


def expand_tiles(mask: Bool[Array, "..."], tile: Sequence[int]) -> Bool[Array, "..."]:
    """Returns the mask of the weights from the mask of their tiles."""
    for axis, size in enumerate(tile):
        if size > 1:
            shape = [*mask.shape[: axis + 1], size, *mask.shape[axis + 1 :]]
            copies = jnp.broadcast_to(jnp.expand_dims(mask, axis + 1), shape)
            shape[axis : axis + 2] = [shape[axis] * size]
            mask = copies.reshape(shape)
    return mask


def reduce_tiles(reduce: Callable[..., Array], x: Array, tile: Sequence[int]) -> Array:
    """Reduces each tile to one element, by a reduction such as `jnp.sum`."""
    for axis, size in enumerate(tile):
        if size > 1:
            groups = split_groups(gather_groups(x, size, axis), size, axis)
            x = reduce(groups, axis=axis + 1)
    return x
