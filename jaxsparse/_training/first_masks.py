"""The packed masks that a masked optimizer begins with."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxsparse._masks import best_masks, match_masks
from jaxsparse._patterns import as_bool, pack_mask, packed_axis
from jaxsparse._plans import Plan
from jaxsparse._sharding import device_put_mask
from jaxsparse._trees import array_shapes, require_values


def first_masks(
    weights: Mapping[str, Any],
    plan: Plan | None,
    masks: PyTree | None,
    progress: Float[Array, ""] | None = None,
) -> dict[str, Any]:
    """Packed masks for the leaves of a tree, a part of a tree, or a placeholder.

    Args:
      weights: the leaves by canonical path.
      plan: their plan; or None, to take the masks alone.
      masks: a tree of masks to begin with, bool or packed, which are copied; or None,
        to search for those of the plan.
      progress: the way from dense, 0, to the plan's patterns, 1.

    Returns:
      The masks by canonical path, None for dense leaves.

    Raises:
      ValueError: masks that do not fit the parameters or the plan; nothing prunable.
      TypeError: a leaf with a mask has no values.
    """
    if masks is not None:
        first = _copy_masks(weights, plan, match_masks(weights, masks, part=True))
    else:
        assert plan is not None
        first = best_masks(weights, plan, progress=progress, packed=True)
    shapes = array_shapes(weights)
    if shapes and not any(mask is not None for mask in first.values()):
        raise ValueError(
            f"nothing prunable: no mask and no pattern for any of the leaves {shapes}: "
            "give a mask or a rule for one of them"
        )
    return first


def _copy_masks(
    weights: Mapping[str, Any], plan: Plan | None, masks: Mapping[str, Any]
) -> dict[str, Any]:
    """The caller's masks, packed along the axes of the plan where there is one."""
    axes = None if plan is None else {leaf.path: leaf.axis for leaf in plan.sparse}
    copies: dict[str, Any] = {}
    for path, mask in masks.items():
        if axes is not None and (mask is None) != (path not in axes):
            raise ValueError(
                f"leaf {path!r} has a mask and no pattern in the plan, or the "
                "reverse: to refresh masks, give those of the plan's leaves"
            )
        axis = None if axes is None else axes.get(path)
        if mask is not None:
            require_values(path, weights[path])
        copies[path] = None if mask is None else _copy(path, mask, weights[path], axis)
    return copies


def _copy(path: str, mask: Any, weight: Any, axis: int | None) -> Array | None:
    """One mask packed along `axis`; without one as it was packed, or along the last."""
    if weight.ndim == 0:
        raise ValueError(
            f"leaf {path!r} is a scalar, and its mask cannot be packed: give None in "
            "the place of the mask"
        )
    if axis is None:
        is_packed = mask.dtype != jnp.bool_
        axis = packed_axis(mask.shape, weight.shape) if is_packed else weight.ndim - 1
    assert axis is not None
    # Packed even if packed already: a donated step must not delete the caller's arrays.
    return device_put_mask(_pack(mask, weight, axis), weight)


# Of the weight only the sharding counts: it tells the devices.
@partial(jax.jit, static_argnums=2, keep_unused=True)
def _pack(mask: Array, weight: Array, axis: int) -> Array:
    return pack_mask(as_bool(mask, weight), axis)
