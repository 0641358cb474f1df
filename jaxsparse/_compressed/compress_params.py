"""Compressed weights for a whole tree."""

from typing import Any

import jax
from jaxtyping import PyTree

from jaxsparse._compressed.compress import compress
from jaxsparse._compressed.compressed_array import decompress, is_compressed
from jaxsparse._compressed.indices import POSITION_BITS
from jaxsparse._masks import create_masks, mask_leaf, match_masks
from jaxsparse._patterns import NM
from jaxsparse._plans import (
    LeafPlan,
    PlanLike,
    plan_for_leaves,
)
from jaxsparse._trees import flatten


def compress_params(
    params: PyTree, plan: PlanLike = "2:4", *, masks: PyTree | None = None
) -> PyTree:
    """The parameters, masked, with the leaves of n:m patterns stored without zeros.

    `decompress_params` gives back, to the bit, what `mask_params` makes of the same
    parameters and masks.

    Args:
      params: a tree of arrays.
      plan: a plan, rules or a pattern: where groups lie.
      masks: a tree of bool or packed masks, or of None for leaves that stay dense. The
        default is the plan's best masks by magnitude, which change no weight of a tree
        that obeys the plan already.

    Returns:
      A tree like `params` with a `Compressed` for every leaf that has a mask and n:m
      in groups of 4, 8 or 16. Leaves of other patterns are masked arrays, and leaves
      without a mask are as they were.

    Raises:
      ValueError: the plan or a mask does not fit, or a mask keeps more than `n` of a
        group, or has a leaf that the plan keeps dense; besides what `plan_sparsity`
        raises.
      TypeError: a mask that is neither bool nor packed (uint8).

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.ones((64, 32), jnp.bfloat16), "bias": jnp.ones(32)}
    >>> small = compress_params(params)
    >>> small["kernel"].nbytes / params["kernel"].nbytes
    0.5625
    """
    leaves = flatten(params)
    plan = plan_for_leaves(leaves.by_path, plan)
    masks = create_masks(params, plan) if masks is None else masks
    matched = match_masks(leaves.by_path, masks)
    return leaves.unflatten(
        {
            path: leaf
            if matched[path] is None
            else _compress_leaf(leaf, plan[path], matched[path])
            for path, leaf in leaves.by_path.items()
        }
    )


def decompress_params(params: PyTree) -> PyTree:
    """The tree of arrays that was compressed, with its zeros.

    Args:
      params: a tree in which leaves may be `Compressed`.

    Returns:
      The tree with an array for each of them; traceable and differentiable.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.ones((64, 32))}
    >>> print(decompress_params(compress_params(params))["kernel"][:4, 0])
    [1. 1. 0. 0.]
    """
    return jax.tree.map(
        lambda leaf: decompress(leaf) if is_compressed(leaf) else leaf,
        params,
        is_leaf=is_compressed,
    )


def _compress_leaf(leaf: Any, plan: LeafPlan, mask: Any) -> Any:
    if plan.pattern is None:
        raise ValueError(
            f"leaf {plan.path!r} of shape {plan.shape} has a mask, but the plan says "
            f"{plan.decision!r}: give the plan that the masks were made for"
        )
    if not isinstance(plan.pattern, NM) or plan.pattern.m not in POSITION_BITS:
        return mask_leaf(leaf, mask)
    try:
        return compress(leaf, plan.pattern, mask=mask, axis=plan.axis)
    except ValueError as error:
        raise ValueError(f"leaf {plan.path!r}: {error}") from None
