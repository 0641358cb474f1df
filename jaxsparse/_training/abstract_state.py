"""The state of an optimizer as shapes and shardings, without making it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from jaxsparse._patterns import packed_axis
from jaxsparse._sharding import mask_sharding
from jaxsparse._trees import PyTree, flatten_with_keys, map_by_parameter


def abstract_state(tx: optax.GradientTransformation, params: PyTree) -> PyTree:
    """Returns the shapes, dtypes and shardings of the state of `tx.init(params)`.

    Arrays that belong to a parameter and have its shape are sharded like the parameter.
    So are packed masks, except along axes where shards would split bytes
    (`sharding_report` names those leaves). All other arrays, such as counters and
    factored moments, are replicated over the parameters' mesh. Use it as the target
    when a checkpoint is restored, and to give `jax.jit` the shardings of a new state.

    Args:
      tx: any optimizer, wrapped or not.
      params: a tree of arrays, or of `jax.ShapeDtypeStruct` with shardings.

    Returns:
      A tree like the state, of `jax.ShapeDtypeStruct`; without shardings where the
      parameters have none.

    Raises:
      ValueError, TypeError: as `tx.init`.

    >>> from jaxsparse import get_masks, wrap_optimizer
    >>> tx, params = wrap_optimizer(optax.adamw(0.1)), {"kernel": jnp.ones((16, 8))}
    >>> state = abstract_state(tx, params)
    >>> print(get_masks(state)["kernel"].shape)
    (2, 8)
    >>> shardings = jax.tree.map(lambda x: x.sharding, state)
    >>> state = jax.jit(tx.init, out_shardings=shardings)(params)
    """
    (weights, _), paths = flatten_with_keys(params)
    replicated = _replicated([getattr(x, "sharding", None) for x in weights.values()])
    on_mesh = isinstance(replicated, NamedSharding)

    def with_sharding(path: str | None, leaf: jax.ShapeDtypeStruct):
        weight = None if path is None else weights[path]
        # An uncommitted weight beside sharded ones will be replicated over their mesh.
        free = weight is None or (on_mesh and not getattr(weight, "committed", True))
        sharding = None if free else _like(weight, leaf)
        sharding = replicated if sharding is None else sharding
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return map_by_parameter(with_sharding, jax.eval_shape(tx.init, params), paths)


def _replicated(shardings: Sequence[Sharding | None]) -> Sharding | None:
    """Replicated over the weights' mesh, or the sharding of the first weight."""
    for sharding in shardings:
        if isinstance(sharding, NamedSharding):
            return NamedSharding(sharding.mesh, PartitionSpec())
    return next((sharding for sharding in shardings if sharding is not None), None)


def _like(weight: Any, leaf: jax.ShapeDtypeStruct) -> Sharding | None:
    """The sharding of an array that belongs to a weight and is like it or its mask."""
    sharding = getattr(weight, "sharding", None)
    if leaf.shape == weight.shape:
        return sharding
    is_mask = (
        leaf.dtype == jnp.uint8 and packed_axis(leaf.shape, weight.shape) is not None
    )
    if is_mask and isinstance(sharding, NamedSharding):
        return mask_sharding(sharding, weight.shape, leaf.shape)
    return None
