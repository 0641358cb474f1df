"""Sparse LoRA: low-rank changes that are masked as their weights are."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxsparse._masks import match_masks
from jaxsparse._patterns import as_bool
from jaxsparse._plans import LeafPlan, PlanLike, plan_for
from jaxsparse._recovery.low_rank import LowRank, add_product, is_low_rank
from jaxsparse._trees import PyTree, flatten


def create_adapters(
    params: PyTree, plan: PlanLike, *, rank: int, key: jax.Array
) -> PyTree:
    """Returns adapters for every leaf that the plan prunes, which change nothing yet.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021,
    arXiv:2106.09685): `a` is drawn from a normal distribution of variance `1 / inputs`,
    and `b` is zero. Train them instead of the weights: an optimizer's moments then take
    the memory of the adapters.

    Args:
      params: a tree of arrays.
      plan: a plan, rules or a pattern, which give the inputs and outputs of each leaf.
      rank: the number of columns of `a`.
      key: the random key.

    Returns:
      A tree like `params` with a `LowRank` of float32 factors for each leaf that the
      plan prunes, and None for all others. Optax trains it as it is.

    Raises:
      ValueError: the rank is not positive, and whatever `plan_sparsity` raises.
      TypeError: a leaf that the plan prunes has an integer dtype.

    >>> params = {"kernel": jnp.arange(128.0).reshape(16, 8)}
    >>> adapters = create_adapters(params, "2:4", rank=2, key=jax.random.key(0))
    >>> adapters["kernel"].a.shape, adapters["kernel"].b.shape
    ((16, 2), (2, 8))
    """
    if rank < 1:
        raise ValueError(f"the rank of adapters must be at least 1, got {rank}")
    leaves = flatten(params)
    plan = plan_for(params, plan)
    for leaf in plan.sparse:
        _check_dtype(leaf.path, leaves.by_path[leaf.path])
    keys = {leaf.path: i for i, leaf in enumerate(plan.sparse)}

    def create(path: str) -> LowRank | None:
        if path not in keys:
            return None
        return _create(plan[path], rank, jax.random.fold_in(key, keys[path]))

    return leaves.unflatten({path: create(path) for path in leaves.by_path})


def apply_adapters(
    params: PyTree,
    adapters: PyTree,
    masks: PyTree | None,
    *,
    scale: ArrayLike = 1.0,
) -> PyTree:
    """Returns `where(mask, w + scale * a @ b, 0)` for every leaf with adapters.

    Call it in the loss, and once more to merge the adapters: the weights are the same
    bits. Traceable.

    Args:
      params: a tree of arrays: the pruned weights.
      adapters: a tree like `params`, from `create_adapters` or `compensate_low_rank`,
        with None for leaves without adapters.
      masks: the masks of `params`, bool or packed, which every leaf with adapters has.
        None adds the products unmasked, which makes those leaves dense.
      scale: multiplies the products; may be traced.

    Returns:
      A tree like `params` with the same dtypes. Leaves with a mask have exact zeros
      where it prunes, with or without adapters. Sums are made in float32 and rounded.

    Raises:
      ValueError: adapters or masks do not fit, or a leaf has adapters and no mask.

    >>> params = {"kernel": jnp.ones((4, 2))}
    >>> adapters = {"kernel": LowRank(jnp.ones((4, 1)), jnp.ones((1, 2)))}
    >>> masks = {"kernel": jnp.array([[1, 1], [0, 1], [1, 0], [0, 0]], bool)}
    >>> apply_adapters(params, adapters, masks, scale=0.5)["kernel"]
    Array([[1.5, 1.5],
           [0. , 1.5],
           [1.5, 0. ],
           [0. , 0. ]], dtype=float32)
    """
    leaves = flatten(params)
    by_path = match_adapters(leaves.by_path, adapters)
    matched = {} if masks is None else match_masks(leaves.by_path, masks)
    for path in by_path if masks is not None else ():
        if matched[path] is None:
            raise ValueError(
                f"leaf {path!r} has adapters and no mask: give the masks that its "
                "plan was searched for, or None for all to add products unmasked"
            )

    def apply(path: str, leaf: Any) -> Any:
        adapter, mask = by_path.get(path), matched.get(path)
        if adapter is None and mask is None:
            return leaf
        return _apply(leaf, adapter, mask, scale)

    return leaves.unflatten(
        {path: apply(path, leaf) for path, leaf in leaves.by_path.items()}
    )


def match_adapters(leaves: Mapping[str, Any], adapters: PyTree) -> dict[str, LowRank]:
    """Returns the adapters of leaves by path, checked against the leaves.

    Raises:
      ValueError: an adapter has no leaf or another shape.
      TypeError: a node of the tree is neither a `LowRank` nor None.
    """
    by_path = flatten(adapters, is_leaf=is_low_rank).by_path
    for path, adapter in by_path.items():
        if not is_low_rank(adapter):
            raise TypeError(
                f"the adapters of leaf {path!r} are a {type(adapter).__name__}: give "
                "the tree that create_adapters returned, with LowRank or None"
            )
        shape = getattr(leaves.get(path), "shape", None)
        if shape != adapter.shape:
            raise ValueError(
                f"adapters {path!r} are for a leaf of shape {adapter.shape}, and this "
                f"tree has {'none' if shape is None else shape} there: create them "
                "for these parameters"
            )
    return by_path


@jax.jit
def _apply(
    leaf: Array, adapter: LowRank | None, mask: Array | None, scale: ArrayLike
) -> Array:
    if adapter is not None:
        leaf = add_product(leaf, adapter, scale)
    if mask is None:
        return leaf
    return jnp.where(as_bool(mask, leaf), leaf, jnp.zeros((), leaf.dtype))


def _create(leaf: LeafPlan, rank: int, key: jax.Array) -> LowRank:
    assert leaf.shape is not None
    batch, outputs = leaf.batch, leaf.output
    axes = range(len(leaf.shape))
    inputs = tuple(i for i in axes if i not in batch + outputs)
    batch_sizes, input_sizes, output_sizes = (
        tuple(leaf.shape[axis] for axis in group) for group in (batch, inputs, outputs)
    )
    std = jnp.float32(math.prod(input_sizes) ** -0.5)
    a = std * jax.random.normal(key, (*batch_sizes, *input_sizes, rank), jnp.float32)
    b = jnp.zeros((*batch_sizes, rank, *output_sizes), jnp.float32)
    return LowRank(a, b, batch, inputs, outputs)


def _check_dtype(path: str, leaf: Any) -> None:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise TypeError(
            f"leaf {path!r} of shape {leaf.shape} has dtype {leaf.dtype}, and only "
            "floats have adapters: keep it dense by a rule"
        )
