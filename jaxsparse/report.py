"""Reports: what was pruned, how much of it, and what that cost."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxsparse._best_masks import as_bool, best_masks
from jaxsparse._leaf_plan import LeafPlan
from jaxsparse._masks import is_numeric, match_masks
from jaxsparse._paths import flatten, is_array
from jaxsparse._pattern import Pattern
from jaxsparse._plan import PlanLike, is_plan_like, plan_for
from jaxsparse._score import count_true, is_zero
from jaxsparse._table import fold, shape_text, table


@dataclass(frozen=True)
class LeafReport:
    """One leaf of a report.

    Attributes:
      path: the canonical path.
      shape: None where the leaf is not an array.
      sparsity: the fraction of zeros it has; None where it holds no real numbers.
      magnitude_kept: of the sum of its magnitudes, the share that its mask keeps.
      nonfinite: the number of NaN and infinities in it.
      pattern: the pattern planned, None if dense or unknown.
      axis: the group axis planned, None if dense or unknown.
      decision: what was planned, in words.
      reason: why it stays dense; empty for a pruned leaf.
    """

    path: str
    shape: tuple[int, ...] | None
    sparsity: float | None
    magnitude_kept: float | None
    nonfinite: int
    pattern: Pattern | None
    axis: int | None
    decision: str
    reason: str


@dataclass(frozen=True)
class SparsityReport:
    """A report on every leaf of a tree. Print it for a table.

    Attributes:
      leaves: one `LeafReport` a leaf.
    """

    leaves: tuple[LeafReport, ...]

    def __iter__(self) -> Iterator[LeafReport]:
        return iter(self.leaves)

    def __str__(self) -> str:
        header = ("leaf", "shape", "sparsity", "kept", "plan")
        return table(header, fold((leaf.path, _cells(leaf)) for leaf in self.leaves))


def sparsity_report(params: PyTree, plan: PlanLike | PyTree = "2:4") -> SparsityReport:
    """Reports on every leaf: zeros, magnitude kept, or why it stays dense.

    It reads values, so it runs outside `jit`.

    Args:
      params: a tree of arrays, pruned or not.
      plan: a plan, rules or a pattern: the magnitude kept is that of the best masks for
        these weights. Or a tree of masks: it is what these keep.

    Returns:
      A `SparsityReport`.

    Raises:
      ValueError, TypeError: the plan or the masks do not fit.

    >>> params = {"kernel": jnp.arange(128.0).reshape(16, 8), "bias": jnp.ones(8)}
    >>> print(sparsity_report(params, "2:4"))
    leaf    shape  sparsity  kept   plan
    bias    8      0.0%      -      dense: bias, norm or scalar
    kernel  16x8   0.8%      56.3%  2:4 along axis 0
    """
    leaves, _ = flatten(params)
    if is_plan_like(plan):
        plan = plan_for(params, plan)
        decisions = {
            path: plan.by_path.get(path, LeafPlan(path, None, reason="not an array"))
            for path in leaves
        }
        masks = best_masks(leaves, plan.sparse)
    else:
        masks = match_masks(params, plan)
        decisions = {
            path: LeafPlan(
                path, None, reason="" if masks[path] is not None else "no mask"
            )
            for path in leaves
        }
    return SparsityReport(
        tuple(
            _leaf_report(path, leaf, masks.get(path), decisions[path])
            for path, leaf in leaves.items()
        )
    )


def _leaf_report(path: str, leaf: Any, mask: Any, decision: LeafPlan) -> LeafReport:
    numeric = is_numeric(leaf)
    values = jax.device_get(_measure(leaf, mask)) if numeric and leaf.size else None
    return LeafReport(
        path=path,
        shape=tuple(leaf.shape) if is_array(leaf) else None,
        sparsity=None if values is None else float(values["zeros"]) / leaf.size,
        magnitude_kept=_share(values) if values and mask is not None else None,
        nonfinite=0 if values is None else int(values["nonfinite"]),
        pattern=decision.pattern,
        axis=decision.axis,
        decision=decision.decision,
        reason=decision.reason,
    )


@jax.jit
def _measure(leaf: jax.Array, mask: jax.Array | None) -> dict[str, jax.Array]:
    finite = jnp.isfinite(leaf)
    wide = jnp.promote_types(leaf.dtype, jnp.float32)
    magnitude = jnp.where(finite, jnp.abs(leaf.astype(wide)), 0)
    kept = magnitude if mask is None else jnp.where(as_bool(mask, leaf), magnitude, 0)
    return {
        "zeros": count_true(is_zero(leaf)),
        "nonfinite": count_true(~finite),
        "magnitude": jnp.sum(magnitude),
        "kept": jnp.sum(kept),
    }


def _share(values: dict[str, np.ndarray]) -> float:
    """The share of a magnitude that is kept; all of nothing is kept."""
    return float(values["kept"] / values["magnitude"]) if values["magnitude"] else 1.0


def _cells(leaf: LeafReport) -> tuple[str, ...]:
    masked = leaf.pattern is None and not leaf.reason
    plan = "masked" if masked else leaf.decision
    if leaf.nonfinite:
        plan += f"; {leaf.nonfinite} values are NaN or infinite"
    return (
        "-" if leaf.shape is None else shape_text(leaf.shape),
        "-" if leaf.sparsity is None else f"{leaf.sparsity:.1%}",
        "-" if leaf.magnitude_kept is None else f"{leaf.magnitude_kept:.1%}",
        plan,
    )
