"""Moments of weights that were pruned or regrown.

When masks change, the moments of such weights belong to another network. A moment has
its parameter's shape.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from jaxsparse._sharding import reshard_to
from jaxsparse._trees import Keys, is_array, map_by_parameter


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
