"""Masks for a whole tree: make them, apply them."""

import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxsparse._masks.mask_search import search_masks
from jaxsparse._patterns import as_bool, check_mask, constant_arrays
from jaxsparse._plans import Plan, PlanLike, is_plan_like, plan_for
from jaxsparse._sharding import device_put_mask
from jaxsparse._trees import (
    PyTree,
    flatten,
    flatten_masks,
    is_array,
    is_numeric,
    require_values,
)


def create_masks(
    params: PyTree,
    plan: PlanLike = "2:4",
    *,
    scores: PyTree | None = None,
    packed: bool = False,
) -> PyTree:
    """Returns the best mask for every leaf that the plan prunes.

    Args:
      params: a tree of arrays.
      plan: a plan, rules or a pattern.
      scores: a tree like `params` of real numbers; the mask keeps the highest. Leaves
        that stay dense need none. The default is the magnitude of the weights.
      packed: whether to return one bit per weight, as uint8 arrays packed along the
        group axis, lowest bit first, instead of bool arrays.

    Returns:
      A tree like `params` of masks, which are True (a set bit) where a weight is kept,
      or None for a leaf that stays dense. Every complete group keeps exactly `n`. Masks
      are sharded like the parameters; packed masks are replicated along an axis where
      shards would split bytes.

    Raises:
      ValueError: the plan or the scores do not fit the parameters, and whatever
        `plan_sparsity` raises.
      TypeError: a leaf that the plan prunes, or its score, is a `jax.ShapeDtypeStruct`.

    Warns:
      UserWarning: all weights (or scores) of a leaf are equal, as in a projection that
        starts at zero. Ties keep the lower index, so its mask prunes the same inputs
        for every output. Values that are not known, as under `jit`, are not checked.

    >>> params = {"kernel": jnp.arange(128.0).reshape(16, 8)}
    >>> create_masks(params, "2:4")["kernel"][:4, 0]
    Array([False, False,  True,  True], dtype=bool)
    """
    leaves = flatten(params)
    plan = plan_for(params, plan)
    ranked = None
    if scores is None:
        _warn_of_ties(leaves.by_path, plan, signed=False)
    else:
        ranked = flatten(scores).by_path
        for leaf in plan.sparse:
            weight = leaves.by_path[leaf.path]
            _check_score(leaf.path, weight, ranked.get(leaf.path))
        _warn_of_ties(ranked, plan, signed=True)
    return leaves.unflatten(
        best_masks(leaves.by_path, plan, scores=ranked, packed=packed)
    )


def best_masks(
    leaves: Mapping[str, Any],
    plan: Plan,
    *,
    scores: Mapping[str, Any] | None = None,
    progress: Float[Array, ""] | None = None,
    packed: bool = False,
) -> dict[str, Array | None]:
    """The best mask of every leaf by path, on the devices of the leaf.

    Args:
      leaves: the leaves of a tree by canonical path.
      plan: their plan.
      scores: scores of the planned leaves; the default is the magnitude.
      progress: the way from dense, 0, to the plan's patterns, 1.
      packed: whether to pack the masks along the group axis.

    Returns:
      The masks by canonical path; None for a leaf that stays dense.
    """
    masks = search_masks(
        leaves if scores is None else scores,
        plan.sparse,
        progress=progress,
        packed=packed,
        signed=scores is not None,
    )
    return {
        path: device_put_mask(masks.get(path), leaf) for path, leaf in leaves.items()
    }


def _warn_of_ties(scores: Mapping[str, Any], plan: Plan, *, signed: bool) -> None:
    """Warns once of all leaves whose scores are equal, so that ties decide."""
    planned = {leaf.path: scores[leaf.path] for leaf in plan.sparse}
    constant = constant_arrays(planned, signed=signed)
    if constant:
        what = "scores" if signed else "magnitudes"
        warnings.warn(
            f"all {what} of {sorted(constant)} are equal: ties decide and keep the "
            "lower index, so every output keeps the same inputs. Give "
            "scores=random_scores(params, key), or train with SET or RigL, which "
            "regrow weights",
            stacklevel=3,
        )


def mask_params(params: PyTree, masks: PyTree, *, donate: bool = False) -> PyTree:
    """Returns the parameters with exact zeros where weights are pruned.

    Args:
      params: a tree of arrays.
      masks: a tree of bool or packed masks, None for leaves that stay dense.
      donate: whether the result may take the memory of the masked leaves of `params`,
        as `donate_argnums` of `jax.jit` does; those leaves are deleted. With it a model
        that fills its device can be masked there. Ignored under a trace.

    Returns:
      A tree like `params`, of the same dtypes. Masked positions hold plus zero whatever
      they held before, NaN included.

    Raises:
      ValueError: a leaf has no entry in `masks`, a mask has no leaf or another shape;
        or, to be donated, one array is two leaves.
      TypeError: a mask is neither bool nor packed (uint8), the masks are a plan, rules
        or a pattern, or a leaf has no values.

    >>> params = {"kernel": jnp.arange(128.0).reshape(16, 8)}
    >>> mask_params(params, create_masks(params, "2:4"))["kernel"][:4, 0]
    Array([ 0.,  0., 16., 24.], dtype=float32)
    """
    leaves = flatten(params)
    matched = match_masks(leaves.by_path, masks)
    for path, leaf in leaves.by_path.items():
        require_values(path, leaf)
    if donate:
        _check_once(leaves.by_path, matched)
    mask_one = _donated_leaf if donate else mask_leaf
    return leaves.unflatten(
        {path: mask_one(leaf, matched[path]) for path, leaf in leaves.by_path.items()}
    )


def match_masks(
    leaves: Mapping[str, Any], masks: PyTree, *, part: bool = False
) -> dict[str, Any]:
    """The mask of every leaf, checked against the leaf.

    Args:
      leaves: the leaves of a tree by canonical path.
      masks: a tree of masks.
      part: whether the masks may have been made for a larger tree.

    Returns:
      The masks by canonical path; None for a leaf that stays dense.

    Raises:
      TypeError: the masks are a plan, rules or a pattern.
    """
    if is_plan_like(masks):
        raise TypeError(
            f"masks must be a tree of masks, got {masks!r:.60}: "
            "create_masks(params, plan) makes them"
        )
    return match_entries(leaves, flatten_masks(masks), part=part)


def match_entries(
    leaves: Mapping[str, Any], entries: Mapping[str, Any], *, part: bool = False
) -> dict[str, Any]:
    """As `match_masks`, for the entries of a tree of masks by canonical path."""
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
                f"leaves are {list(leaves)}: give the masks of this tree"
            )
    return matched


def mask_leaf(leaf: Any, mask: ArrayLike | None) -> Any:
    """One leaf with zeros where its mask, bool or packed, says so."""
    return leaf if mask is None else _mask_array(leaf, mask)


def mask_straight_through(leaf: Any, mask: ArrayLike | None) -> Any:
    """As `mask_leaf`, with the gradient of the dense leaf: masking has derivative 1."""
    return leaf if mask is None else _straight_through(leaf, as_bool(mask, leaf))


@jax.custom_jvp
def _straight_through(leaf: ArrayLike, mask: Array) -> Array:
    return jnp.where(mask, leaf, jnp.zeros((), jnp.asarray(leaf).dtype))


@_straight_through.defjvp
def _straight_through_jvp(primals, tangents):
    return _straight_through(*primals), tangents[0]


def _donated_leaf(leaf: Any, mask: ArrayLike | None) -> Any:
    return leaf if mask is None else _donated_array(leaf, mask)


def _where_kept(leaf: Array, mask: Array) -> Array:
    return jnp.where(as_bool(mask, leaf), leaf, jnp.zeros((), leaf.dtype))


_mask_array = jax.jit(_where_kept)
_donated_array = jax.jit(_where_kept, donate_argnums=0)


def _check_score(path: str, weight: Any, score: Any) -> None:
    got = tuple(score.shape) if is_numeric(score) else None
    if got != tuple(weight.shape):
        raise ValueError(
            f"leaf {path!r} of shape {weight.shape} needs real scores of the same "
            f"shape, got {score if got is None else got}"
        )


def _check_once(leaves: Mapping[str, Any], masks: Mapping[str, Any]) -> None:
    """Raises if an array that is to be donated is two leaves."""
    seen: dict[int, str] = {}
    for path, leaf in leaves.items():
        other = seen.setdefault(id(leaf), path)
        if other != path and (masks[path] is not None or masks[other] is not None):
            raise ValueError(
                f"leaves {other!r} and {path!r} are the same array of shape "
                f"{leaf.shape}: it cannot be donated twice; mask without `donate`"
            )
