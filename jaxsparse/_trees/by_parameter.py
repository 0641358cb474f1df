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
    inside: Callable[[str, Any], Any] | None = None,
) -> PyTree:
    """Maps `f(path of the parameter that a leaf belongs to, leaf)` over a tree.

    Args:
      f: its first argument is None for a leaf that belongs to no parameter.
      tree: the state of any optimizer, or another tree with copies of parameters.
      paths: the canonical paths of all parameters by their keys. Keys tell an entry
        `mu` of the parameters from Adam's field of that name.
      is_leaf: what is not looked into, as for `jax.tree.map`.
      inside: instead of `f` for a leaf inside of what stands for a parameter, as the
        values and indices of a compressed weight, or accumulators of each axis.
    """

    def map_leaf(keys: Keys, leaf: Any):
        keys = without_box(keys)
        path = _path_within(keys, len(keys), paths)
        if path is None and inside is not None:
            for stop in range(len(keys) - 1, 0, -1):
                if (outer := _path_within(keys, stop, paths)) is not None:
                    return inside(outer, leaf)
        return f(path, leaf)

    return tree_map_with_path(map_leaf, tree, is_leaf=is_leaf)


def _path_within(keys: Keys, stop: int, paths: Mapping[Keys, str]) -> str | None:
    """Returns the parameter whose keys end before `stop`; of several the longest."""
    windows = (keys[start:stop] for start in range(stop + 1))
    return next((paths[window] for window in windows if window in paths), None)
