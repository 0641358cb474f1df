"""The state of an optimizer as shapes and shardings, before there is one."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import PyTree

from jaxsparse._patterns import packed_axis
from jaxsparse._sharding import mask_sharding
from jaxsparse._training.inner_state import map_by_parameter
from jaxsparse._trees import flatten_with_keys


def abstract_state(tx: optax.GradientTransformation, params: PyTree) -> PyTree:
    """What `tx.init(params)` will return: shapes, dtypes and shardings.

    Whatever has the shape of a parameter and is in its place is sharded as the
    parameter, and so is its packed mask, but along an axis where shards would cut
    bytes (`sharding_report` names such leaves). All else, such as counters and factored
    moments, is on every device of the parameters' mesh. It is what a checkpoint is
    restored as, and says where `jax.jit` is to put a new state.

    Args:
      tx: any optimizer, wrapped or not.
      params: a tree of arrays, or of `jax.ShapeDtypeStruct` with shardings.

    Returns:
      A tree like the state, of `jax.ShapeDtypeStruct`; without shardings where the
      parameters have none.

    Raises:
      ValueError, TypeError: what `tx.init` raises.

    >>> from jaxsparse import get_masks, wrap_optimizer
    >>> tx, params = wrap_optimizer(optax.adamw(0.1)), {"kernel": jnp.ones((16, 8))}
    >>> state = abstract_state(tx, params)
    >>> print(get_masks(state)["kernel"].shape)
    (2, 8)
    >>> shardings = jax.tree.map(lambda x: x.sharding, state)
    >>> state = jax.jit(tx.init, out_shardings=shardings)(params)
    """
    (weights, _), paths = flatten_with_keys(params)
    everywhere = _everywhere([getattr(x, "sharding", None) for x in weights.values()])
    on_mesh = isinstance(everywhere, NamedSharding)

    def place(path: str | None, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        weight = None if path is None else weights[path]
        # Beside sharded ones, what was put nowhere will go where they are.
        free = weight is None or (on_mesh and not getattr(weight, "committed", True))
        sharding = None if free else _like(weight, leaf)
        sharding = everywhere if sharding is None else sharding
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return map_by_parameter(place, jax.eval_shape(tx.init, params), paths)


def _everywhere(shardings: Sequence[Sharding | None]) -> Sharding | None:
    """The sharding of what is on every device of a mesh, or where the weights are."""
    for sharding in shardings:
        if isinstance(sharding, NamedSharding):
            return NamedSharding(sharding.mesh, PartitionSpec())
    return next((sharding for sharding in shardings if sharding is not None), None)


def _like(weight: Any, leaf: jax.ShapeDtypeStruct) -> Sharding | None:
    """The sharding of what is in the place of a weight, if like that or its mask."""
    sharding = getattr(weight, "sharding", None)
    if leaf.shape == weight.shape:
        return sharding
    is_mask = (
        leaf.dtype == jnp.uint8 and packed_axis(leaf.shape, weight.shape) is not None
    )
    if is_mask and isinstance(sharding, NamedSharding):
        return mask_sharding(sharding, weight.shape, leaf.shape)
    return None
