"""Masks and weights improved together, on whole trees."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool

from jaxsparse._calibration.fit_acting import fit_acting
from jaxsparse._calibration.held_out import best_shrinkage
from jaxsparse._calibration.layer_checks import check_layer
from jaxsparse._calibration.leaf_statistics import (
    LeafStatistics,
    warn_of_few_tokens,
    warn_of_starved,
)
from jaxsparse._calibration.pruned_tree import pruned_tree
from jaxsparse._calibration.refinement import check_refinable, check_sweeps, refine
from jaxsparse._calibration.second_moments import match_second_moments, shrunk_moments
from jaxsparse._calibration.shrinkage import SHRINKAGE, Shrinkage, check_shrinkage
from jaxsparse._masks import SearchResult, match_masks
from jaxsparse._patterns import NM, Pattern, as_bool
from jaxsparse._plans import Plan, PlanLike, plan_for
from jaxsparse._sharding import replicate, reshard_like
from jaxsparse._trees import PyTree, flatten


def refine_masks(
    params: PyTree,
    masks: PyTree,
    statistics: Any,
    *,
    plan: PlanLike,
    sweeps: int = 10,
    shrinkage: Shrinkage = SHRINKAGE,
) -> SearchResult:
    """Improves masks of any origin, together with the weights under them.

    Every sweep visits the groups of an n:m pattern in turn and gives each the best of
    its `C(m, n)` masks, with the best weights, while all others are held. For
    `PerOutput` and `Unstructured` it visits every kept weight and moves it to the best
    input of the same output. No step increases the error of a layer's outputs over the
    second moment, shrunk as in `SparseGPTSearcher`. `SparseGPTSearcher(refine=10)`
    starts from the weights of SparseGPT, which ends lower in most cases.

    Args:
      params: a tree of arrays: the weights before pruning.
      masks: a tree of bool or packed masks that obey the plan, None for dense leaves.
      statistics: second moments, from `collect_statistics`.
      plan: the plan, the rules or the pattern of the masks: n:m with up to 70 masks of
        a group, such as 2:4 and 4:8, `PerOutput` or `Unstructured`.
      sweeps: the number of sweeps.
      shrinkage: the fraction by which the second moment's entries off the diagonal are
        reduced first, or `"auto"`, as in `SparseGPTSearcher`.

    Returns:
      The pruned parameters, with their dtypes, their masks, packed where the given ones
      are, and the plan.

    Raises:
      ValueError: masks, plan and statistics do not fit each other, weights are not
        finite, or the pattern is not supported. Each error names the leaf.
      TypeError: a leaf has an integer dtype, or `sweeps` is not an integer.

    Warns:
      UserWarning: a leaf has few tokens, or a problem, such as an expert, met none and
        is not refined.

    >>> from jaxsparse import collect_statistics, create_masks
    >>> pairs = jnp.repeat(jax.random.normal(jax.random.key(0), (99, 8)), 2, axis=1)
    >>> params = {"kernel": jnp.ones((16, 8)).at[::4].set(2.0)}
    >>> fn = lambda params, x: x @ params["kernel"]
    >>> statistics = collect_statistics(fn, params, [pairs])  # inputs 0 and 1 are equal
    >>> masks = create_masks(params, "2:4")  # keeps inputs 0 and 1
    >>> result = refine_masks(params, masks, statistics, plan="2:4", shrinkage=0.0)
    >>> print(result.params["kernel"][:4, 0].round().astype(int))
    [3 0 2 0]
    """
    check_shrinkage(shrinkage)
    check_sweeps("sweeps", sweeps)
    plan = plan_for(params, plan)
    leaves = flatten(params).by_path
    matched = match_masks(leaves, masks)
    _check(plan, leaves, matched)
    weights = {leaf.path: leaves[leaf.path] for leaf in plan.sparse}
    by_path = match_second_moments(weights, statistics, shrinkage)
    for leaf in plan.sparse:
        check_layer(leaf, by_path[leaf.path].columns)
    warn_of_few_tokens(by_path)
    warn_of_starved(by_path)
    refined = {
        leaf.path: best_shrinkage(
            partial(
                _refine,
                leaves[leaf.path],
                matched[leaf.path],
                by_path[leaf.path],
                leaf.pattern,
                sweeps,
            ),
            lambda refined: refined[0],
            leaves[leaf.path],
            by_path[leaf.path],
            shrinkage,
        )
        for leaf in plan.sparse
    }
    packed = [path for path in refined if matched[path].dtype == jnp.uint8]
    return pruned_tree(params, plan, refined, packed=packed)


@partial(jax.jit, static_argnums=3)
def _refine(
    leaf: Array,
    mask: Array,
    statistics: LeafStatistics,
    pattern: Pattern,
    sweeps: ArrayLike,
    shrinkage: ArrayLike,
) -> tuple[Array, Array]:
    """Returns the pruned leaf and its mask."""
    matrices = statistics.columns
    moments = shrunk_moments(statistics, shrinkage)
    weights = statistics.scaled_matrices(leaf)
    masks = matrices.to_matrices(as_bool(mask, leaf))
    starts = jnp.where(masks, weights, 0)
    new, masks = refine(pattern, weights, starts, masks, moments, sweeps)
    new = fit_acting(statistics, weights, new, masks, moments)
    kept = reshard_like(matrices.from_matrices(masks), leaf)
    weight = statistics.unscaled_leaf(new, leaf)
    return jnp.where(kept, weight, jnp.zeros((), leaf.dtype)), kept


def _check(plan: Plan, leaves: Mapping[str, Any], masks: Mapping[str, Any]) -> None:
    """Raises unless the masks fit the plan, and the plan can be refined."""
    planned = {leaf.path for leaf in plan.sparse}
    for path, mask in masks.items():
        if mask is not None and path not in planned:
            raise ValueError(
                f"leaf {path!r} of shape {leaves[path].shape} has a mask, but is "
                f"planned {plan[path].decision!r}: pass the plan of the masks"
            )
    for leaf in plan.sparse:
        check_refinable(leaf, "fit_weights fits weights to the masks as they are")
        if masks[leaf.path] is None:
            raise ValueError(
                f"leaf {leaf.path!r} of shape {leaf.shape} is planned "
                f"{leaf.decision!r}, but has no mask: pass the plan of the masks"
            )
    obeyed = {
        leaf.path: _obeys(masks[leaf.path], leaves[leaf.path], leaf.axis, leaf.pattern)
        for leaf in plan.sparse
        if isinstance(leaf.pattern, NM)
    }
    for path, obeys in jax.device_get(obeyed).items():
        if not obeys:
            raise ValueError(
                f"the mask of leaf {path!r} of shape {leaves[path].shape} keeps more "
                f"weights of a group than {plan[path].decision!r}: pass the plan of "
                "the masks"
            )


@partial(jax.jit, static_argnums=(2, 3))
def _obeys(mask: Array, leaf: Array, axis: int, pattern: NM) -> Bool[Array, ""]:
    """Returns whether no group of a mask keeps more than `n`."""
    kept = jnp.moveaxis(replicate(as_bool(mask, leaf)), axis, -1)
    groups = kept.reshape(-1, pattern.m)
    return (jnp.sum(groups, 1, dtype=jnp.int32) <= pattern.n).all()
