"""The result of a searcher, from pruned leaves and their masks."""

from collections.abc import Container, Mapping
from typing import Any

from jaxtyping import Array

from jaxsparse._masks import SearchResult
from jaxsparse._patterns import pack_mask
from jaxsparse._plans import Plan
from jaxsparse._sharding import device_put_like
from jaxsparse._trees import PyTree, map_named


def pruned_tree(
    params: PyTree,
    plan: Plan,
    pruned: Mapping[str, tuple[Array, Array]],
    *,
    packed: Container[str],
) -> SearchResult:
    """Returns a tree with some of its leaves pruned, and the tree of their masks.

    Args:
      params: the parameters before.
      plan: their plan.
      pruned: the pruned leaves with their masks, by path.
      packed: the paths of the leaves whose masks are packed, if they have an axis.
    """

    def weight(path: str, leaf: Any) -> Any:
        return device_put_like(pruned[path][0], leaf) if path in pruned else leaf

    def mask(path: str, leaf: Any) -> Array | None:
        if path not in pruned:
            return None
        kept, axis = device_put_like(pruned[path][1], leaf), plan[path].axis
        return pack_mask(kept, axis) if path in packed and axis is not None else kept

    return SearchResult(map_named(weight, params), map_named(mask, params), plan)
