"""Masks for a whole tree: make them, apply them."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from jaxsparse._masks.mask_search import search_masks
from jaxsparse._patterns import (
    as_bool,
    check_mask,
)
from jaxsparse._plans import PlanLike, plan_for
from jaxsparse._sharding import device_put_mask
from jaxsparse._trees import flatten, flatten_masks, is_array, is_numeric, map_named


def create_masks(
    params: PyTree,
    plan: PlanLike = "2:4",
    *,
    scores: PyTree | None = None,
    packed: bool = False,
) -> PyTree:
    """The best mask of every leaf that the plan prunes.

    Args:
      params: a tree of arrays.
      plan: a plan, rules or a pattern.
      scores: a tree like `params`, of real numbers: the mask keeps the highest. The
        default is the magnitude of the weights. Leaves that stay dense need none.
      packed: one bit a weight, as uint8 arrays packed along the group axis, lowest bit
        first, instead of bool arrays.

    Returns:
      A tree like `params`: True (a set bit) = kept, and None for a leaf that stays
      dense. In every whole group exactly `n` are kept. Masks are sharded as the
      parameters are, packed ones not along an axis where shards would cut bytes.

    Raises:
      ValueError: the plan or the scores do not fit; besides what `plan_sparsity`
        raises.

    >>> params = {"kernel": jnp.arange(128.0).reshape(16, 8)}
    >>> create_masks(params, "2:4")["kernel"][:4, 0]
    Array([False, False,  True,  True], dtype=bool)
    """
    plan = plan_for(params, plan)
    ranked, _ = flatten(params)
    if scores is not None:
        given, _ = flatten(scores)
        for leaf in plan.sparse:
            _check_score(leaf.path, ranked[leaf.path], given.get(leaf.path))
        ranked = given
    masks = search_masks(ranked, plan.sparse, packed=packed, signed=scores is not None)
    return map_named(lambda path, leaf: device_put_mask(masks.get(path), leaf), params)


def mask_params(params: PyTree, masks: PyTree, *, donate: bool = False) -> PyTree:
    """The parameters with exact zeros wherever a mask says so.

    Args:
      params: a tree of arrays.
      masks: a tree of bool or packed masks, or of None for leaves that stay dense.
      donate: give up the masked leaves of `params`, whose memory the result takes:
        a model that fills its device can be masked there. They are deleted, as by
        `donate_argnums` of `jax.jit`; under a trace this has no effect.

    Returns:
      A tree like `params`, of the same dtypes. Masked places hold plus zero, whatever
      was there, NaN included.

    Raises:
      ValueError: a leaf without an entry in `masks`, a mask without a leaf, or one of
        another shape; to donate, one array as two leaves.
      TypeError: a mask that is neither bool nor packed (uint8).

    >>> params = {"kernel": jnp.arange(128.0).reshape(16, 8)}
    >>> mask_params(params, create_masks(params, "2:4"))["kernel"][:4, 0]
    Array([ 0.,  0., 16., 24.], dtype=float32)
    """
    matched = match_masks(params, masks)
    if not donate:
        return map_named(lambda path, leaf: mask_leaf(leaf, matched[path]), params)
    _check_once(params, matched)
    donated = lambda leaf, mask: leaf if mask is None else _donated_array(leaf, mask)
    return map_named(lambda path, leaf: donated(leaf, matched[path]), params)


def match_masks(params: PyTree, masks: PyTree, *, part: bool = False) -> dict[str, Any]:
    """The mask of every leaf by canonical path, checked against the leaf.

    Args:
      params: a tree of arrays.
      masks: a tree of masks.
      part: whether `params` may be a part of the tree that the masks were made for.
    """
    leaves, _ = flatten(params)
    entries = flatten_masks(masks)
    matched = {}
    for path, leaf in leaves.items():
        if path not in entries and is_array(leaf):
            raise ValueError(
                f"masks have no entry for leaf {path!r} of shape {leaf.shape}: they "
                "were made for another tree. None is the entry of a dense leaf"
            )
        mask = matched[path] = entries.get(path)
        if mask is not None and not is_array(leaf):
            raise ValueError(
                f"leaf {path!r} has a mask but is not an array ({leaf!r}): give None "
                "in its place"
            )
        if mask is not None:
            check_mask(mask, tuple(leaf.shape), name=f"leaf {path!r}")
    for path, mask in entries.items():
        if mask is not None and path not in leaves and not part:
            raise ValueError(
                f"mask {path!r} of shape {mask.shape} has no leaf in this tree, whose "
                f"leaves are {list(leaves)}"
            )
    return matched


def mask_leaf(leaf: Any, mask: ArrayLike | None) -> Any:
    """One leaf with zeros where its mask, bool or packed, says so."""
    return leaf if mask is None else _mask_array(leaf, mask)


def _where_kept(leaf: Array, mask: Array) -> Array:
    return jnp.where(as_bool(mask, leaf), leaf, jnp.zeros((), leaf.dtype))


_mask_array = jax.jit(_where_kept)
_donated_array = jax.jit(_where_kept, donate_argnums=0)


def _check_score(path: str, weight: Any, score: Any) -> None:
    got = tuple(score.shape) if is_numeric(score) else None
    if got != tuple(weight.shape):
        raise ValueError(
            f"leaf {path!r} of shape {weight.shape} is to be pruned by real scores of "
            f"the same shape, got {score if got is None else got}"
        )


def _check_once(params: PyTree, masks: dict[str, Any]) -> None:
    """Raises unless every array that is to be donated is one leaf, not two."""
    seen: dict[int, str] = {}
    for path, leaf in flatten(params)[0].items():
        other = seen.setdefault(id(leaf), path)
        if other != path and (masks[path] is not None or masks[other] is not None):
            raise ValueError(
                f"leaves {other!r} and {path!r} are the same array of shape "
                f"{leaf.shape}: it cannot be donated twice; mask without `donate`"
            )
