"""Tiles: blocks, channels or single weights, pruned as a whole."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxsparse._score import Ranked, by_magnitude, by_value, only_within


def rank_tiles(
    score: jax.typing.ArrayLike,
    tile: Sequence[int],
    *,
    signed: bool,
    within: Bool[Array, "..."] | None = None,
) -> Ranked:
    """Ranks the tiles of an array.

    Args:
      score: weights, or scores that may be negative where `signed`, of any shape.
      tile: the size of a tile along each axis; it divides the axis. A single weight
        is ranked by its bits, a larger tile by the sum of its magnitudes or scores, in
        float32 or the wider dtype that they have.
      signed: whether scores are ranked by value instead of by magnitude.
      within: the tiles of which no weight is kept in this mask rank lowest.

    Returns:
      One place a tile.
    """
    if math.prod(tile) > 1:
        score = jnp.asarray(score)
        score = score.astype(jnp.promote_types(score.dtype, jnp.float32))
        score = over_tiles(jnp.sum, score if signed else jnp.abs(score), tile)
        within = None if within is None else over_tiles(jnp.any, within, tile)
    ranked = by_value(score) if signed else by_magnitude(score)
    return ranked if within is None else only_within(ranked, within)


def spread_tiles(mask: Bool[Array, "..."], tile: Sequence[int]) -> Bool[Array, "..."]:
    """The mask of the weights, from that of their tiles."""
    for axis, size in enumerate(tile):
        mask = jnp.repeat(mask, size, axis) if size > 1 else mask
    return mask


def over_tiles(reduce: Callable[..., Array], x: Array, tile: Sequence[int]) -> Array:
    """A reduction such as `jnp.sum` over each tile; one place a tile is left."""
    sizes = zip(x.shape, tile, strict=True)
    parts = [part for size, t in sizes for part in (size // t, t)]
    return reduce(x.reshape(parts), axis=tuple(range(1, 2 * x.ndim, 2)))
