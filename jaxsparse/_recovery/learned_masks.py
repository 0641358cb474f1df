"""Masks that are learned: for each group, logits of all patterns that it may have.

A sample of the Gumbel-softmax distribution of a group is a weighted mean of patterns,
through which the loss of the whole network has a gradient. The weights stay as they
are.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Float32

from jaxsparse._masks import best_masks, match_masks
from jaxsparse._patterns import (
    NM,
    as_bool,
    enumerate_patterns,
    merge_groups,
    split_groups,
)
from jaxsparse._plans import LeafPlan, PlanLike, plan_for
from jaxsparse._sharding import gather_groups, reshard_like
from jaxsparse._trees import PyTree, flatten, require_values


#: The most patterns of a group: those of 4:8.
_MAX_PATTERNS = 70

#: The standard deviation of the first logits.
_STD = 0.01


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["values"],
    meta_fields=["pattern", "axis"],
)
@dataclass(frozen=True)
class MaskLogits:
    """Logits of the patterns of every group of one leaf.

    Attributes:
      values: float32, of the shape of the leaf with groups in place of weights along
        the group axis, and a last axis of all patterns, in lexicographic order of the
        kept positions, as in `compute_valid_1d_patterns`.
      pattern: the pattern, n:m.
      axis: the group axis of the leaf, not negative.
    """

    values: Any  # trees of it may hold shapes or shardings as well
    pattern: NM
    axis: int


def init_mask_logits(
    params: PyTree,
    plan: PlanLike = "2:4",
    *,
    masks: PyTree | None = None,
    strength: float = 3.0,
    key: jax.Array | None = None,
) -> PyTree:
    """Returns logits to learn masks from, which prefer those of a prior mask.

    Fang et al., "MaskLLM: Learnable Semi-Structured Sparsity for Large Language Models"
    (2024, arXiv:2409.17481): each weight that a pattern shares with the prior mask adds
    `0.01 * strength` to its logit. Take the masks of the best searcher that you have.

    Args:
      params: a tree of arrays.
      plan: a plan, rules or a pattern. All leaves that it prunes must be n:m, with at
        most 70 patterns a group, as in 2:4 and 4:8.
      masks: the prior masks, bool or packed. The default is the best by magnitude.
      strength: how much the prior counts. 3 is the paper's; 0 for no prior.
      key: a random key for noise of standard deviation 0.01, as in the paper. The
        default is no noise: then the hard masks are at first those of the prior.

    Returns:
      A tree like `params` with `MaskLogits` for each leaf that the plan prunes, and
      None for all others. Optax trains it as it is. For 2:4 it has 1.5 times as many
      numbers as the leaves have weights; for 4:8, 8.75 times. Logits are sharded like
      the leaves.

    Raises:
      ValueError: a pattern is not n:m, is transposable or has too many choices; masks
        do not fit; and whatever `plan_sparsity` raises.
      TypeError: a leaf that the plan prunes is a `jax.ShapeDtypeStruct`.

    >>> params = {"kernel": jnp.arange(128.0).reshape(16, 8)}
    >>> logits = init_mask_logits(params, "2:4")
    >>> logits["kernel"].values.shape
    (4, 8, 6)
    >>> print(logits["kernel"].values[0, 0])
    [-0.03  0.    0.    0.    0.    0.03]
    """
    leaves = flatten(params)
    plan = plan_for(params, plan)
    for leaf in plan.sparse:
        _check_leaf(leaf)
        require_values(leaf.path, leaves.by_path[leaf.path])
    if masks is None:
        priors = best_masks(leaves.by_path, plan)
    else:
        priors = match_masks(leaves.by_path, masks)
    for leaf in plan.sparse:
        if priors[leaf.path] is None:
            raise ValueError(
                f"leaf {leaf.path!r} of shape {leaf.shape} is planned "
                f"{leaf.decision!r} and has no prior mask: give the masks of this plan"
            )
    numbers = {leaf.path: i for i, leaf in enumerate(plan.sparse)}

    def init(path: str) -> MaskLogits | None:
        if path not in numbers:
            return None
        leaf = plan[path]
        assert isinstance(leaf.pattern, NM)
        assert leaf.axis is not None
        leaf_key = None if key is None else jax.random.fold_in(key, numbers[path])
        prior, weight = priors[path], leaves.by_path[path]
        values = _init(weight, prior, strength, leaf_key, leaf.pattern, leaf.axis)
        return MaskLogits(values, leaf.pattern, leaf.axis)

    return leaves.unflatten({path: init(path) for path in leaves.by_path})


def learned_masks(
    logits: PyTree,
    *,
    key: jax.Array | None = None,
    temperature: ArrayLike = 1.0,
    scale: ArrayLike = 100.0,
) -> PyTree:
    """Returns soft masks to train with, or the hard ones that were learned. Traceable.

    With a key, each group has the mean of its patterns weighted by
    `softmax((scale * logits + gumbel) / temperature)`, where `gumbel` is a sample of
    the Gumbel distribution. Multiply the weights by it in the loss. Without a key, each
    group has the pattern of the largest logit.

    The paper moves the temperature from 4 to 0.05 and the scale from 100 to 500,
    linearly over the training: samples of the first steps mix many patterns, and those
    of the last ones are close to hard masks, of the likeliest patterns.

    Args:
      logits: a tree from `init_mask_logits`, trained or not.
      key: the random key of a step. Use a new one for each.
      temperature: how far from hard masks samples are; may be traced.
      scale: what logits are multiplied by before noise is added; may be traced.

    Returns:
      A tree of masks, None for leaves without logits: with a key, float32 between 0 and
      1 whose sum over a group is `n`; without one, bool for `mask_params`,
      `wrap_optimizer` and `fit_weights`.

    Raises:
      TypeError: a node of the tree is neither `MaskLogits` nor None.

    >>> params = {"kernel": jnp.arange(128.0).reshape(16, 8)}
    >>> logits = init_mask_logits(params, "2:4")
    >>> learned_masks(logits)["kernel"][:4, 0]
    Array([False, False,  True,  True], dtype=bool)
    >>> soft = learned_masks(logits, key=jax.random.key(0), temperature=4.0)
    >>> print(soft["kernel"][:4, 0].sum().round(4))
    2.0
    """
    leaves = flatten(logits, is_leaf=_is_logits)
    for path, leaf in leaves.by_path.items():
        if not _is_logits(leaf):
            raise TypeError(
                f"the logits of leaf {path!r} are a {type(leaf).__name__}: give the "
                "tree that init_mask_logits returned, with MaskLogits or None"
            )
    if key is None:
        return leaves.unflatten({p: _hard(leaf) for p, leaf in leaves.by_path.items()})
    return leaves.unflatten(
        {
            path: _soft(leaf, jax.random.fold_in(key, i), temperature, scale)
            for i, (path, leaf) in enumerate(leaves.by_path.items())
        }
    )


@partial(jax.jit, static_argnums=(4, 5))
def _init(
    weight: Array,
    prior: Array,
    strength: ArrayLike,
    key: jax.Array | None,
    pattern: NM,
    axis: int,
) -> Float32[Array, "... pattern"]:
    kept = gather_groups(as_bool(prior, weight), pattern.m, axis).astype(jnp.float32)
    groups = jnp.moveaxis(split_groups(kept, pattern.m, axis), axis + 1, -1)
    patterns = jnp.asarray(enumerate_patterns(pattern.n, pattern.m))
    shared = groups @ patterns.T - jnp.float32(pattern.n / 2)
    values = jnp.float32(_STD) * jnp.asarray(strength, jnp.float32) * shared
    if key is None:
        return values
    noise = reshard_like(jax.random.normal(key, values.shape, values.dtype), values)
    return values + jnp.float32(_STD) * noise


@jax.jit
def _soft(
    logits: MaskLogits, key: jax.Array, temperature: ArrayLike, scale: ArrayLike
) -> Float[Array, "..."]:
    values = logits.values
    noise = reshard_like(jax.random.gumbel(key, values.shape, values.dtype), values)
    scaled = jnp.asarray(scale, values.dtype) * values
    shares = jax.nn.softmax((scaled + noise) / jnp.asarray(temperature, values.dtype))
    return _mix(shares, logits)


@jax.jit
def _hard(logits: MaskLogits) -> Bool[Array, "..."]:
    values = logits.values
    chosen = jnp.argmax(values, axis=-1)
    shares = jax.nn.one_hot(chosen, values.shape[-1], dtype=values.dtype)
    return _mix(shares, logits) > 0.5


def _mix(shares: Float[Array, "... pattern"], logits: MaskLogits) -> Array:
    """Returns the mean of the patterns of each group, in the shape of the leaf."""
    pattern, axis = logits.pattern, logits.axis
    patterns = jnp.asarray(enumerate_patterns(pattern.n, pattern.m), shares.dtype)
    # A matmul at low precision would round shares that are close to 1.
    mixed = jnp.matmul(shares, patterns, precision=jax.lax.Precision.HIGHEST)
    return merge_groups(jnp.moveaxis(mixed, -1, axis + 1), axis)


def _is_logits(node: Any) -> bool:
    return isinstance(node, MaskLogits)


def _check_leaf(leaf: LeafPlan) -> None:
    """Raises unless a group of the leaf has few enough patterns."""
    about = f"leaf {leaf.path!r} of shape {leaf.shape} is planned {leaf.decision!r}"
    pattern = leaf.pattern
    if not isinstance(pattern, NM) or pattern.transposable:
        raise ValueError(
            f"{about}, and masks are learned for n:m alone, not transposable: keep it "
            "dense by a rule, or give it an n:m pattern"
        )
    choices = math.comb(pattern.m, pattern.n)
    if choices > _MAX_PATTERNS:
        raise ValueError(
            f"{about}, of which a group has {choices:,} patterns, each with a logit: "
            f"use a pattern with at most {_MAX_PATTERNS}, such as 2:4 or 4:8"
        )
