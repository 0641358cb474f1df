"""Statistics of those leaves of a tree that have some."""

from collections.abc import Mapping

from jaxsparse._calibration.leaf_statistics import LeafStatistics, match_statistics
from jaxsparse._trees import PyTree, array_shapes, flatten, require_kind


def match_some_statistics(
    params: PyTree, statistics: Mapping[str, LeafStatistics]
) -> dict[str, LeafStatistics]:
    """As `match_statistics`, for the leaves of a tree that have statistics.

    Raises:
      ValueError: as `match_statistics`; or the tree has none of the leaves.
      TypeError: the statistics are not keyed by path.
    """
    remedy = "give collect_statistics(fn, params, batches)"
    require_kind("statistics=", statistics, (Mapping,), remedy)
    shapes = array_shapes(flatten(params).by_path)
    if not shapes.keys() & statistics.keys():
        raise ValueError(
            f"the statistics are of leaves {list(statistics)[:3]}, none of which these "
            f"parameters have: {list(shapes)[:3]}"
        )
    return match_statistics(
        {path: shape for path, shape in shapes.items() if path in statistics},
        statistics,
    )
