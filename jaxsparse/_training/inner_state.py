"""Which parameter each array of an optimizer's state belongs to.

It is found by its place in the state: a moment's path ends in the path of its parameter
in whatever state, partition or accumulator it lies, and it has the parameter's shape.
When masks change, a moment of a weight that was closed, or that is opened, belongs to
another network.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax.tree_util import GetAttrKey, tree_flatten_with_path, tree_map_with_path
from jaxtyping import Array, Bool, PyTree

from jaxsparse._sharding import reshard_to
from jaxsparse._trees import is_array, path_name


def reset_changed(
    inner_state: PyTree, params: PyTree, changed: Mapping[str, Bool[Array, "..."]]
) -> PyTree:
    """The state with zeros for the weights whose masks changed.

    Args:
      inner_state: the state of any optimizer of `params`.
      params: a tree of arrays.
      changed: by path, where the mask of a leaf changed; of masked leaves only.

    Returns:
      The state. Whatever has another shape than its parameter stays as it is, such as
      the factored moments of `optax.adafactor`, and so do counters.
    """

    def reset(name: str | None, leaf: Any):
        where = None if name is None else changed.get(name)
        if where is None or not is_array(leaf) or leaf.shape != where.shape:
            return leaf
        return jnp.where(reshard_to(where, leaf), jnp.zeros((), leaf.dtype), leaf)

    return map_by_parameter(reset, inner_state, params)


def map_by_parameter(
    f: Callable[[str | None, Any], Any], state: PyTree, params: PyTree
) -> PyTree:
    """Maps `f(path of the parameter in whose place it is, leaf)` over a state.

    The path is None for a leaf that is in no parameter's place.
    """
    leaves, _ = tree_flatten_with_path(params)
    names = {_unboxed(path): path_name(path) for path, _ in leaves}

    def named(path: tuple[Any, ...], leaf: Any):
        keys = _unboxed(path)
        ends = (keys[i:] for i in range(len(keys) + 1))  # the longest first
        return f(next((names[end] for end in ends if end in names), None), leaf)

    return tree_map_with_path(named, state)


def _unboxed(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """A path without the `value` of a box, in which NNX hands over `init`'s leaves."""
    return path[:-1] if path and path[-1] == GetAttrKey("value") else path
