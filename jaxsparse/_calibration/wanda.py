"""Wanda: weights ranked by what they add to a layer's outputs."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxsparse._calibration.leaf_statistics import (
    LeafStatistics,
    Statistic,
    match_statistics,
)
from jaxsparse._masks import (
    SearchResult,
    create_masks,
    mask_params,
)
from jaxsparse._patterns import wide_float
from jaxsparse._plans import PlanLike, plan_for
from jaxsparse._sharding import reshard_like
from jaxsparse._trees import map_named


@dataclass(frozen=True)
class WandaSearcher:
    """Keeps the weights of largest `abs(w) * norm(x)`, `x` being the weight's input.

    Sun et al., "A Simple and Effective Pruning Approach for Large Language Models"
    (2024, arXiv:2306.11695). Any pattern; weights that are kept do not change. The
    paper's unstructured pattern is `PerOutput`.

    Attributes:
      plan: a plan, rules or a pattern.
      packed: whether masks come packed, one bit a weight.

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
        """Prunes `params`; it reads values, so it runs outside `jit`.

        Args:
          params: a tree of arrays.
          statistics: what `collect_statistics` measured, of either kind.

        Returns:
          The pruned parameters, their masks and the plan.

        Raises:
          ValueError: statistics that are missing, do not fit, are not finite or all
            zero, naming the leaf; besides what `create_masks` raises.
        """
        plan = plan_for(params, self.plan)
        known = match_statistics(
            {leaf.path: leaf.shape for leaf in plan.sparse}, statistics
        )
        score = lambda path, leaf: _score(leaf, known[path]) if path in known else leaf
        scores = map_named(score, params)
        masks = create_masks(params, plan, scores=scores, packed=self.packed)
        return SearchResult(mask_params(params, masks), masks, plan)


@jax.jit
def _score(weight: Array, statistics: LeafStatistics) -> Array:
    columns = statistics.columns
    norm = jnp.sqrt(statistics.mean_square)[:, :, None]
    width = weight.size // norm.size
    norms = columns.join(jnp.broadcast_to(norm, (*norm.shape[:2], width)))
    wide = wide_float(weight.dtype)
    return jnp.abs(weight.astype(wide)) * reshard_like(norms.astype(wide), weight)
