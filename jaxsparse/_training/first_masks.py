"""The packed masks that a masked optimizer begins with."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxsparse._masks import (
    match_masks,
    search_masks,
)
from jaxsparse._patterns import (
    as_bool,
    pack_mask,
    packed_axis,
)
from jaxsparse._plans import PlanLike, plan_for
from jaxsparse._sharding import device_put_mask
from jaxsparse._trees import flatten, map_named, shapes_of


def initial_masks(
    params: PyTree,
    plan: PlanLike | None,
    masks: PyTree | None,
    progress: Float[Array, ""] | None = None,
) -> PyTree:
    """Packed masks for `params`, which may be a part of the tree, or a placeholder.

    Args:
      params: a tree of arrays.
      plan: a plan, rules or a pattern; or None, to have the masks alone.
      masks: the masks to begin with, bool or packed; or None, to find those of `plan`.
      progress: the way from dense, 0, to the plan's patterns, 1.

    Returns:
      A tree like `params`, None for dense leaves. Masks that were given are copied.

    Raises:
      ValueError: masks that do not fit the parameters or the plan; nothing prunable.
    """
    planned = None if plan is None else plan_for(params, plan, part=True)
    if masks is not None:
        given = match_masks(params, masks, part=True)
        axes = None if planned is None else {p.path: p.axis for p in planned.sparse}
        packed = lambda path, weight: _packed_copy(path, given[path], weight, axes)
        start = map_named(packed, params)
    else:
        assert planned is not None
        weights, _ = flatten(params)
        found = search_masks(weights, planned.sparse, progress=progress, packed=True)
        place = lambda path, leaf: device_put_mask(found.get(path), leaf)
        start = map_named(place, params)
    arrays = shapes_of(params)
    if arrays and not jax.tree.leaves(start):
        raise ValueError(
            f"nothing prunable: no mask and no pattern for any of the leaves {arrays}"
        )
    return start


def _packed_copy(
    path: str, mask: Any, weight: Any, axes: dict[str, int | None] | None
) -> Array | None:
    """A caller's mask packed along the plan's axis, or as it was, or along the last."""
    if axes is not None and (mask is None) != (path not in axes):
        raise ValueError(
            f"leaf {path!r} has a mask and no pattern in the plan, or the "
            "reverse: to refresh masks, give those of the plan's leaves"
        )
    if mask is None:
        return None
    if weight.ndim == 0:
        raise ValueError(f"leaf {path!r} is a scalar: its mask cannot be packed")
    axis = None if axes is None else axes[path]
    if axis is None:
        is_packed = mask.dtype != jnp.bool_
        axis = packed_axis(mask.shape, weight.shape) if is_packed else weight.ndim - 1
    assert axis is not None
    # Always packed anew: a donated step must not delete the caller's arrays.
    return device_put_mask(_pack(mask, weight, axis), weight)


# Of the weight only the sharding counts, by which the devices are known.
@partial(jax.jit, static_argnums=2, keep_unused=True)
def _pack(mask: Array, weight: Array, axis: int) -> Array:
    return pack_mask(as_bool(mask, weight), axis)
