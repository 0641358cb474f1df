"""Axes of parameters only: what NNX holds in other variables stays dense."""

from collections.abc import Mapping

from jaxsparse._plans.leaf_axes import LeafAxes
from jaxsparse._trees import PyTree, non_parameters


def only_parameters(
    axes: Mapping[str, LeafAxes], params: PyTree
) -> dict[str, LeafAxes]:
    """Returns the axes by path, with none for leaves that are in no `nnx.Param`.

    A cache or a statistic may be contracted, and no optimizer updates it.
    """
    kinds = non_parameters(params)

    def of_parameter(path: str, leaf: LeafAxes) -> LeafAxes:
        if path not in kinds or leaf.group is None:
            return leaf
        return LeafAxes(reason=f"a {kinds[path]}, not an nnx.Param", remedy="axis")

    return {path: of_parameter(path, leaf) for path, leaf in axes.items()}
