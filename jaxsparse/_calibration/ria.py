"""RIA: the importance of a weight relative to its input and its output."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxsparse._calibration.leaf_statistics import (
    LeafStatistics,
    fill_starved,
)
from jaxsparse._calibration.some_statistics import match_some_statistics
from jaxsparse._sharding import reshard_like
from jaxsparse._trees import PyTree, map_named


def ria_scores(
    params: PyTree,
    statistics: Mapping[str, LeafStatistics],
    *,
    power: float = 0.5,
) -> PyTree:
    """Returns the scores of RIA: relative importance, times a power of the input norm.

    The relative importance of a weight is its share of the magnitudes of its input plus
    its share of those of its output, so that no channel loses all weights. Zhang et
    al., "Plug-and-Play: An Efficient Post-Training Pruning Method for Large Language
    Models" (2024, ICLR).

    Args:
      params: a tree of arrays.
      statistics: the result of `collect_statistics`, with either statistic.
      power: the power of the norm of the input: 0 for the relative importance alone.

    Returns:
      A tree like `params` of float32 scores, for what takes `scores`. Leaves without
      statistics stay as they are.

    Raises:
      ValueError: statistics do not fit their leaf, are not finite or all zero.

    >>> from jaxsparse import collect_statistics
    >>> params = {"kernel": jnp.ones((16, 8))}
    >>> fn = lambda params, x: x @ params["kernel"]
    >>> statistics = collect_statistics(fn, params, [jnp.full((1, 16), 4.0)])
    >>> ria_scores(params, statistics)["kernel"][0, 0]  # (1/8 + 1/16) * 4 ** 0.5
    Array(0.375, dtype=float32)
    """
    by_path = match_some_statistics(params, statistics)
    score = lambda path, x: _score(x, by_path[path], power) if path in by_path else x
    return map_named(score, params)


@jax.jit
def _score(weight: Array, statistics: LeafStatistics, power: ArrayLike) -> Array:
    sizes = jnp.abs(statistics.scaled_matrices(weight))
    share = lambda axis: _ratio(sizes, jnp.sum(sizes, axis, keepdims=True))
    squares = fill_starved(statistics).mean_square[:, :, None]
    norms = squares ** (jnp.asarray(power, jnp.float32) / 2)
    scores = (share(1) + share(2)) * norms
    return reshard_like(statistics.columns.from_matrices(scores), weight)


def _ratio(part: Array, whole: Array) -> Array:
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)
