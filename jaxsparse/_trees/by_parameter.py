"""Which parameter each leaf of a tree belongs to that holds copies of parameters.

The path of a leaf tells: a moment's path ends in the path of its parameter, in whatever
state of an optimizer, partition or accumulator it lies.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jax.tree_util import tree_map_with_path

from jaxsparse._trees.paths import Keys, without_box
from jaxsparse._trees.pytree import PyTree


def map_by_parameter(
    f: Callable[[str | None, Any], Any],
    tree: PyTree,
    paths: Mapping[Keys, str],
    is_leaf: Callable[[Any], bool] | None = None,
) -> PyTree:
    """Maps `f(path of the parameter that a leaf belongs to, leaf)` over a tree.

    Args:
      f: its first argument is None for a leaf that belongs to no parameter.
      tree: the state of any optimizer, or another tree with copies of parameters.
      paths: the canonical paths of all parameters by their keys. Keys tell an entry
        `mu` of the parameters from Adam's field of that name.
      is_leaf: what is not looked into, as for `jax.tree.map`.
    """

    def map_leaf(keys: Keys, leaf: Any):
        keys = without_box(keys)
        ends = (keys[i:] for i in range(len(keys) + 1))  # the longest first
        return f(next((paths[end] for end in ends if end in paths), None), leaf)

    return tree_map_with_path(map_leaf, tree, is_leaf=is_leaf)
