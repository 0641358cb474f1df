"""Wanda: scores that weigh each weight by the norm of its input."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxsparse._calibration.leaf_statistics import (
    LeafStatistics,
    Statistic,
    fill_starved,
    match_statistics,
    warn_of_starved,
)
from jaxsparse._calibration.some_statistics import match_some_statistics
from jaxsparse._masks import SearchResult, create_masks, mask_params
from jaxsparse._patterns import wide_float
from jaxsparse._plans import PlanLike, plan_for
from jaxsparse._sharding import reshard_like
from jaxsparse._trees import PyTree, map_named


@dataclass(frozen=True)
class WandaSearcher:
    """Prunes by Wanda: weights with the largest `abs(w) * norm(x)` are kept.

    `x` is what the weight is multiplied by. A weight that `fn` multiplies by a factor
    is scored with the factor.

    Sun et al., "A Simple and Effective Pruning Approach for Large Language Models"
    (2024, arXiv:2306.11695). Supports any pattern and leaves kept weights unchanged.
    The paper's unstructured pattern is `PerOutput`.

    Attributes:
      plan: a plan, rules or a pattern.
      packed: whether to return packed masks, one bit a weight.

    >>> from jaxsparse import collect_statistics
    >>> params = {"kernel": jnp.ones((16, 8))}
    >>> inputs = jnp.tile(jnp.array([1.0, 3.0, 2.0, 0.0]), (5, 4))
    >>> fn = lambda params, x: x @ params["kernel"]
    >>> statistics = collect_statistics(fn, params, [inputs])
    >>> WandaSearcher("2:4").search(params, statistics).params["kernel"][:4, 0]
    Array([0., 1., 1., 0.], dtype=float32)
    """

    plan: PlanLike = "2:4"
    packed: bool = False
    statistic: ClassVar[Statistic] = "mean_square"

    def search(self, params: PyTree, statistics: Any = None) -> SearchResult:
        """Prunes `params`. It reads values, so it runs outside `jit`.

        Args:
          params: a tree of arrays.
          statistics: the result of `collect_statistics`, with either statistic.

        Returns:
          The pruned parameters, their masks and the plan.

        Raises:
          ValueError: statistics of a leaf, which is named, are missing, do not fit, are
            not finite or all zero; besides the errors of `create_masks`.

        Warns:
          UserWarning: a problem of a leaf, such as an expert, met no tokens, and is
            pruned by magnitude.
        """
        plan = plan_for(params, self.plan)
        shapes = {leaf.path: leaf.shape for leaf in plan.sparse}
        by_path = match_statistics(shapes, statistics)
        warn_of_starved(by_path)
        scores = _scores(params, by_path)
        masks = create_masks(params, plan, scores=scores, packed=self.packed)
        return SearchResult(mask_params(params, masks), masks, plan)


def wanda_scores(params: PyTree, statistics: Mapping[str, LeafStatistics]) -> PyTree:
    """Returns Wanda's scores, `abs(w) * norm(x)`, for what takes `scores`.

    Args:
      params: a tree of arrays.
      statistics: the result of `collect_statistics`, with either statistic.

    Returns:
      A tree like `params` of float32 scores. Leaves without statistics stay as they
      are.

    Raises:
      ValueError: statistics do not fit their leaf, are not finite or all zero.

    >>> from jaxsparse import collect_statistics
    >>> params = {"kernel": jnp.full((16, 8), -2.0)}
    >>> fn = lambda params, x: x @ params["kernel"]
    >>> statistics = collect_statistics(fn, params, [jnp.full((1, 16), 3.0)])
    >>> wanda_scores(params, statistics)["kernel"][0, :2]
    Array([6., 6.], dtype=float32)
    """
    return _scores(params, match_some_statistics(params, statistics))


def _scores(params: PyTree, by_path: Mapping[str, LeafStatistics]) -> PyTree:
    score = lambda path, x: _score(x, by_path[path]) if path in by_path else x
    return map_named(score, params)


@jax.jit
def _score(weight: Array, statistics: LeafStatistics) -> Array:
    norm = jnp.sqrt(fill_starved(statistics).mean_square)
    norms = statistics.columns.spread_inputs(norm)
    wide = wide_float(weight.dtype)
    if statistics.factors is not None:
        weight = weight.astype(wide) * reshard_like(
            statistics.factors.astype(wide), weight
        )
    return jnp.abs(weight.astype(wide)) * reshard_like(norms.astype(wide), weight)
