"""Which leaves to prune how far: a plan chosen among plans, within a budget."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float32

from jaxsparse._calibration import (
    LeafStatistics,
    WandaSearcher,
    match_statistics,
    output_error,
)
from jaxsparse._compressed import planned_bytes
from jaxsparse._masks import MagnitudeSearcher, Searcher
from jaxsparse._patterns import Unstructured
from jaxsparse._plans import LeafPlan, Plan, plan_for, pruned_weights
from jaxsparse._recovery.tradeoffs import least_error
from jaxsparse._trees import Leaves, PyTree, flatten


#: What a budget limits: weights that are kept, bytes, or a cost of the caller's.
Cost = Literal["weights", "bytes"] | Callable[[LeafPlan], float]

#: Why a leaf stays dense.
_REASON = "by allocation, since pruning it loses much"


def allocate(
    plans: Plan | Sequence[Plan],
    params: PyTree,
    statistics: Any = None,
    *,
    budget: float,
    cost: Cost = "weights",
    sensitivity: Mapping[str, float] | None = None,
    loss: Callable[[PyTree], ArrayLike] | None = None,
    searcher: Callable[[Plan], Searcher] | None = None,
) -> Plan:
    """Plans which leaves are pruned by which of several plans, and which stay dense.

    Each leaf is pruned as in one of the plans or stays dense, so that the sum of the
    errors of all leaves is least within the budget. The sum is minimised exactly, but
    for costs with more than 16,384 trade-offs.

    The error of a leaf is the squared relative error of its outputs on the inputs of
    the statistics, on held-out ones if there are any; or, without statistics, the share
    of its sum of squares that is pruned; or, with `loss`, how much the loss rises if
    this leaf alone is pruned. It is measured on the weights that a searcher returns for
    each plan.

    Args:
      plans: a plan, or several for the same tree, such as those for `"2:4"` and
        `"4:8"`. A leaf that none of them prunes stays dense and costs nothing.
      params: a tree of arrays: the weights before pruning.
      statistics: the result of `collect_statistics`, with either statistic.
      budget: the largest total cost, as a fraction of the cost of these leaves without
        pruning: 0.6 of the weights, for instance, where 2:4 alone keeps 0.5.
      cost: what the budget limits: `"weights"` that are kept, `"bytes"` of compressed
        leaves, or a function of a `LeafPlan`, such as seconds measured for its shape
        and pattern. 4:8 keeps as many weights as 2:4 in as many bytes and loses less,
        so 2:4 is only chosen beside it by a cost that shows its speed.
      sensitivity: what the error of a leaf is multiplied by, by path; 1 for paths that
        are missing. `outlier_ratios` has one choice of it.
      loss: a function of the parameters, under `jax.jit` if it is to be compiled. It is
        called once for every leaf and plan.
      searcher: makes the searcher of a plan. The default is `WandaSearcher`, or
        `MagnitudeSearcher` without statistics.

    Returns:
      A plan. Leaves that it keeps dense say that they were allocated so.

    Raises:
      ValueError: the budget is below what the plans can reach, or not from 0 to 1; a
        plan or statistics do not fit; the sparsity of a leaf depends on other leaves;
        an error or a cost is not finite.
      TypeError: `plans` are rules or patterns.

    >>> from jaxsparse import plan_sparsity
    >>> rows = jnp.tile(jnp.array([0.0, 0.0, 1.0, 2.0]), 4)[:, None]
    >>> params = {"a": jnp.arange(128.0).reshape(16, 8), "b": rows * jnp.ones(8)}
    >>> fn = lambda params, x: x @ params["a"] + x @ params["b"]
    >>> x = jnp.ones((1, 16))
    >>> plan = plan_sparsity(params, "2:4", fn=fn, args=(x,), dense_head=False)
    >>> print(allocate(plan, params, budget=0.8))
    leaf   shape  plan
    a      16x8   dense: by allocation, since pruning it loses much
    b      16x8   2:4 along axis 0
    total  256    1 of 2 pruned: 25.0 % of weights
    """
    if not 0 < budget <= 1:
        raise ValueError(f"the budget must be more than 0 and at most 1, got {budget}")
    leaves = flatten(params)
    plans = list(plans) if isinstance(plans, Iterable) else [plans]
    choices = _choices([_checked(plan, params) for plan in plans])
    costs = _costs(choices, cost, leaves)
    dense_cost = sum(options[0] for options in costs)
    least = sum(map(min, costs)) / dense_cost
    if least > budget:
        raise ValueError(
            f"a budget of {budget:g} is below the {least:.4g} that these plans can "
            "reach: give a larger one, or a plan that prunes more"
        )
    if searcher is None:
        searcher = MagnitudeSearcher if statistics is None else WandaSearcher
    measure = _rise(loss, leaves) if loss is not None else _change(leaves, statistics)
    errors: dict[str, list[Any]] = {path: [0.0] for path in choices}
    for plan in plans:
        pruned = flatten(searcher(plan).search(params, statistics).params).by_path
        for leaf in plan.sparse:
            errors[leaf.path].append(measure(leaf.path, pruned[leaf.path]))
    chosen = least_error(
        costs, _weighted(jax.device_get(errors), sensitivity or {}), budget * dense_cost
    )
    by_path = {
        path: options[index]
        for (path, options), index in zip(choices.items(), chosen, strict=True)
    }
    allocated = tuple(by_path.get(leaf.path, leaf) for leaf in plans[0].leaves)
    return replace(plans[0], leaves=allocated)


def _checked(plan: Any, params: PyTree) -> Plan:
    """Returns a plan that fits the parameters.

    Raises:
      TypeError: it is not a plan.
      ValueError: it does not fit, or the sparsity of a leaf depends on that of others.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"allocate needs plans of plan_sparsity, got {plan!r:.60}")
    plan_for(params, plan)
    for leaf in plan.sparse:
        if isinstance(leaf.pattern, Unstructured) and leaf.pattern.across_leaves:
            raise ValueError(
                f"leaf {leaf.path!r} of shape {leaf.shape} is planned "
                f"{leaf.decision!r}, so its sparsity depends on other leaves: give "
                "plans with a sparsity for each leaf, such as Unstructured(0.5)"
            )
    return plan


def _choices(plans: Sequence[Plan]) -> dict[str, list[LeafPlan]]:
    """Returns the choices for each leaf that a plan prunes: first dense, then those."""
    choices: dict[str, list[LeafPlan]] = {}
    for plan in plans:
        for leaf in plan.sparse:
            dense = LeafPlan(leaf.path, leaf.shape, reason=_REASON)
            choices.setdefault(leaf.path, [dense]).append(leaf)
    if not choices:
        raise ValueError("no plan prunes any leaf: give plans from plan_sparsity")
    return choices


def _costs(
    choices: Mapping[str, Sequence[LeafPlan]], cost: Cost, leaves: Leaves
) -> list[list[float]]:
    def price(leaf: LeafPlan) -> float:
        if cost == "weights":
            return float(math.prod(leaf.shape or ()) - pruned_weights(leaf))
        if cost == "bytes":
            return float(planned_bytes(leaf, leaves.by_path[leaf.path].dtype))
        value = float(cost(leaf))
        if not 0 <= value < math.inf:
            raise ValueError(
                f"the cost of leaf {leaf.path!r} of shape {leaf.shape}, "
                f"{leaf.decision!r}, must be finite and not negative, got {value}"
            )
        return value

    return [[price(leaf) for leaf in options] for options in choices.values()]


def _rise(
    loss: Callable[[PyTree], ArrayLike], leaves: Leaves
) -> Callable[[str, Array], Array]:
    """Returns a function that measures by how much a pruned leaf raises the loss."""
    dense = jnp.asarray(loss(leaves.unflatten(leaves.by_path)))

    def rise(path: str, pruned: Array) -> Array:
        tree = leaves.unflatten({**leaves.by_path, path: pruned})
        return jnp.asarray(loss(tree)) - dense

    return rise


def _change(leaves: Leaves, statistics: Any) -> Callable[[str, Array], Array]:
    """Returns a function that measures by how much a pruned leaf's outputs change."""

    def change(path: str, pruned: Array) -> Array:
        leaf = leaves.by_path[path]
        if statistics is None:
            return _change_of_weights(leaf, pruned)
        matched = match_statistics({path: leaf.shape}, statistics)[path]
        measured = matched if matched.held_out is None else matched.held_out
        if measured.moments.ndim == 2:
            return _change_of_independent(leaf, pruned, measured)
        return output_error(leaf, pruned, measured) ** 2

    return change


@jax.jit
def _change_of_weights(before: Array, after: Array) -> Float32[Array, ""]:
    """Returns the sum of the squared changes, relative to that of the squares."""
    before, after = before.astype(jnp.float32), after.astype(jnp.float32)
    return _ratio(jnp.sum((before - after) ** 2), jnp.sum(before**2))


@jax.jit
def _change_of_independent(
    before: Array, after: Array, statistics: LeafStatistics
) -> Float32[Array, ""]:
    """Returns the squared relative error of outputs of uncorrelated inputs."""
    before, after = map(statistics.scaled_matrices, (before, after))
    weights = (statistics.tokens[:, None] * statistics.mean_square)[:, :, None]
    return _ratio(
        jnp.sum(weights * (before - after) ** 2), jnp.sum(weights * before**2)
    )


def _ratio(part: Array, whole: Array) -> Array:
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)


def _weighted(
    errors: Mapping[str, Sequence[ArrayLike]], sensitivity: Mapping[str, float]
) -> list[list[float]]:
    """Returns errors times sensitivities.

    Raises:
      ValueError: a path is not that of a leaf, or an error is not finite.
    """
    unknown = sensitivity.keys() - errors.keys()
    if unknown:
        raise ValueError(
            f"sensitivity has {sorted(unknown)}, which no plan prunes: the leaves are "
            f"{list(errors)}"
        )
    weighted = {
        path: [
            float(sensitivity.get(path, 1.0)) * x for x in np.asarray(values).tolist()
        ]
        for path, values in errors.items()
    }
    for path, values in weighted.items():
        if not all(map(math.isfinite, values)):
            raise ValueError(
                f"the errors of leaf {path!r} are {values}: weights, loss and "
                "sensitivity must be finite"
            )
    return [*weighted.values()]
