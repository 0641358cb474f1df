"""Searchers: methods that choose masks, with their settings."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from jaxsparse._masks.masks import create_masks, mask_params
from jaxsparse._plans import Plan, PlanLike, plan_for
from jaxsparse._trees import PyTree


class SearchResult(NamedTuple):
    """The result of a searcher.

    Attributes:
      params: the pruned parameters.
      masks: their masks, None for leaves that stay dense.
      plan: the plan that was used.
    """

    params: PyTree
    masks: PyTree
    plan: Plan


class Searcher(Protocol):
    """The interface of searchers."""

    def search(self, params: PyTree, statistics: Any = None) -> SearchResult:
        """Prunes `params`, by statistics of layer inputs if the method needs them."""
        ...


@dataclass(frozen=True)
class MagnitudeSearcher:
    """Prunes by magnitude, as NVIDIA's ASP does: the largest weights are kept.

    Attributes:
      plan: a plan, rules or a pattern.
      packed: whether masks are packed, one bit per weight.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.arange(128.0).reshape(16, 8)}
    >>> result = MagnitudeSearcher("2:4").search(params)
    >>> print(result.plan["kernel"].decision)
    2:4 along axis 0
    >>> result.params["kernel"][:4, 0]
    Array([ 0.,  0., 16., 24.], dtype=float32)
    """

    plan: PlanLike = "2:4"
    packed: bool = False

    def search(self, params: PyTree, statistics: Any = None) -> SearchResult:
        """Prunes `params` by magnitude.

        Args:
          params: a tree of arrays.
          statistics: ignored; magnitudes need none.

        Returns:
          The pruned parameters, their masks and the plan.

        Raises:
          ValueError, TypeError: as `plan_sparsity` and `create_masks`.
        """
        del statistics
        plan = plan_for(params, self.plan)
        masks = create_masks(params, plan, packed=self.packed)
        return SearchResult(mask_params(params, masks), masks, plan)
