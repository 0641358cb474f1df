"""Which parameter each array of an optimizer's state belongs to.

The path of an array tells: a moment's path ends in the path of its parameter, in
whatever state, partition or accumulator it lies. A moment has its parameter's shape.
When masks change, the moments of weights that were pruned or regrown belong to another
network.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax.tree_util import tree_map_with_path
from jaxtyping import Array, Bool, PyTree

from jaxsparse._sharding import reshard_to
from jaxsparse._trees import Keys, is_array, without_box


def reset_changed(
    inner_state: PyTree,
    paths: Mapping[Keys, str],
    changed: Mapping[str, Bool[Array, "..."]],
) -> PyTree:
    """The state with zeros for the weights whose masks changed.

    Args:
      inner_state: the state of any optimizer of the parameters.
      paths: the canonical paths of all parameters by their keys.
      changed: True where the mask of a leaf changed, for masked leaves only, by path.

    Returns:
      The state. Arrays of other shapes than their parameter's stay as they are, such as
      the factored moments of `optax.adafactor`; so do counters.
    """

    def reset(path: str | None, leaf: Any):
        where = None if path is None else changed.get(path)
        if where is None or not is_array(leaf) or leaf.shape != where.shape:
            return leaf
        return jnp.where(reshard_to(where, leaf), jnp.zeros((), leaf.dtype), leaf)

    return map_by_parameter(reset, inner_state, paths)


def map_by_parameter(
    f: Callable[[str | None, Any], Any], state: PyTree, paths: Mapping[Keys, str]
) -> PyTree:
    """Maps `f(path of the parameter that a leaf belongs to, leaf)` over a state.

    Args:
      f: its first argument is None for a leaf that belongs to no parameter.
      state: the state of any optimizer.
      paths: the canonical paths of all parameters by their keys. Keys tell an entry
        `mu` of the parameters from Adam's field of that name.
    """

    def map_leaf(keys: Keys, leaf: Any):
        keys = without_box(keys)
        ends = (keys[i:] for i in range(len(keys) + 1))  # the longest first
        return f(next((paths[end] for end in ends if end in paths), None), leaf)

    return tree_map_with_path(map_leaf, state)
