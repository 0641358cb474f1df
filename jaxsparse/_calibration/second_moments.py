"""Second moments that weights are fitted to: matched with their leaves, and shrunk."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float32

from jaxsparse._calibration.held_out import check_held_out
from jaxsparse._calibration.leaf_statistics import (
    LeafStatistics,
    fill_starved,
    match_statistics,
)
from jaxsparse._calibration.shrinkage import Shrinkage, shrink
from jaxsparse._sharding import replicate


def match_second_moments(
    leaves: Mapping[str, Any], statistics: Any, shrinkage: Shrinkage
) -> dict[str, LeafStatistics]:
    """Returns the statistics of leaves by path, checked for an update of their weights.

    Args:
      leaves: the leaves by path.
      statistics: what `collect_statistics` returned.
      shrinkage: the shrinkage that the weights will be updated with.

    Raises:
      ValueError: as `match_statistics`; or weights are not finite, only mean squares
        were collected, or the shrinkage is `"auto"` and no tokens were held out.
      TypeError: weights are not floats.
    """
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    by_path = match_statistics(shapes, statistics)
    for path, leaf in leaves.items():
        _check_updatable(path, leaf)
        _check_products(path, by_path[path])
    check_held_out(by_path, shrinkage)
    return by_path


def shrunk_moments(
    statistics: LeafStatistics, shrinkage: ArrayLike
) -> Float32[Array, "problem input input"]:
    """Returns second moments that are shrunk, replicated and nowhere all zero."""
    return shrink(replicate(fill_starved(statistics).second_moment), shrinkage)


def _check_products(path: str, statistics: LeafStatistics) -> None:
    """Raises unless second moments were collected.

    Raises:
      ValueError: only mean squares were.
    """
    if statistics.moments.ndim == 2:
        raise ValueError(
            f"the statistics of leaf {path!r} of shape {statistics.columns.shape} are "
            "mean squares only; this needs "
            "collect_statistics(..., statistic='second_moment')"
        )


def _check_updatable(path: str, weight: Any) -> None:
    """Raises unless the weights of a leaf can be updated.

    Raises:
      TypeError: the weights are not floats.
      ValueError: a weight is NaN or infinite, and would spread to others.
    """
    if not jnp.issubdtype(weight.dtype, jnp.floating):
        raise TypeError(
            f"leaf {path!r} of shape {weight.shape} has dtype {weight.dtype}, and only "
            "floats can be updated: keep it dense by a rule"
        )
    if not jnp.isfinite(weight).all():
        raise ValueError(
            f"leaf {path!r} of shape {weight.shape} has weights that are not finite, "
            "which would spread to the weights that compensate for them: replace them, "
            "or keep the leaf dense by a rule"
        )
