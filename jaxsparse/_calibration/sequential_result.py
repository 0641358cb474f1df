"""The result of pruning in order, of which each stage gives new leaves."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxsparse._channels import PermutationResult
from jaxsparse._masks import SearchResult
from jaxsparse._plans import Plan, plan_for
from jaxsparse._trees import (
    PyTree,
    array_shapes,
    flatten,
    flatten_masks,
    map_named,
    require_kind,
)


class SequentialResult(NamedTuple):
    """The result of `prune_sequentially`.

    Attributes:
      params: the pruned parameters.
      masks: their masks, None for leaves that stay dense.
      plan: the plan that was used.
      permutation: how channels were permuted before, by `permute=True`; else None. Its
        `params` are the dense parameters in the order of the pruned ones, and its
        `permute` and `invert` move what belongs to them.
    """

    params: PyTree
    masks: PyTree
    plan: Plan
    permutation: PermutationResult | None = None


def plan_of_result(
    taker: str, params: PyTree, result: SearchResult | SequentialResult
) -> Plan:
    """Returns the plan of what a function was given as the result of pruning `params`.

    Raises:
      PlanError: the parameters are not those of the plan.
      TypeError: it is no such result.
    """
    remedy = "give what a searcher's search, or prune_sequentially, returned"
    require_kind(taker, result, (SearchResult, SequentialResult), remedy)
    return plan_for(params, result.plan)


def with_leaves(
    result: SequentialResult, leaves: Mapping[str, Any], masks: Mapping[str, Any]
) -> SequentialResult:
    """Returns the result with the leaves and masks of another stage."""
    params = map_named(lambda path, leaf: leaves.get(path, leaf), result.params)
    of_all = {**flatten_masks(result.masks), **masks}
    return result._replace(
        params=params, masks=map_named(lambda path, _: of_all[path], params)
    )


def recalibrated(
    result: SequentialResult, recalibrate: Callable[[PyTree], PyTree]
) -> SequentialResult:
    """Returns the result with new values of leaves that stay dense.

    Raises:
      ValueError: leaves are missing, or have another shape.
    """
    new, old = flatten(recalibrate(result.params)), flatten(result.params)
    if array_shapes(new.by_path) != array_shapes(old.by_path):
        raise ValueError(
            "recalibrate must return all parameters, each of its shape: return "
            '{**params, "batch_stats": ...}, for example'
        )
    pruned = {leaf.path for leaf in result.plan.sparse}
    dense = {path: leaf for path, leaf in new.by_path.items() if path not in pruned}
    return with_leaves(result, dense, {})
