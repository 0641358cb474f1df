"""Low-rank compensation of what pruning lost, by second moments alone.

`a @ b` is the best change of a rank in the metric of the second moment `h` of a layer's
inputs: it minimises `trace((d - a @ b).T @ h @ (d - a @ b))`, where `d` is the dense
weight minus the pruned one. By Eckart and Young, the best `h**.5 @ a @ b` keeps the
first singular vectors of `h**.5 @ d`. With orthonormal rows of `b`, the right ones, the
best `a` is `d @ b.T`, and no inverse of `h` is needed: it may be singular.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float32

from jaxsparse._calibration import (
    SHRINKAGE,
    LeafStatistics,
    check_shrinkage,
    check_updatable,
    fill_starved,
    map_solves,
    match_statistics,
    output_error,
    shrink,
)
from jaxsparse._compressed import planned_bytes
from jaxsparse._masks import SearchResult
from jaxsparse._plans import LeafPlan
from jaxsparse._recovery.adapters import apply_adapters
from jaxsparse._recovery.low_rank import LowRank
from jaxsparse._sharding import replicate
from jaxsparse._trees import PyTree, Tabular, bytes_text, flatten, fold, shape_text


@dataclass(frozen=True)
class LeafCompensation:
    """One leaf of a compensation report.

    Attributes:
      path: the canonical path.
      shape: the leaf's shape.
      decision: the plan for the leaf, in words.
      rank: the rank of its factors; 0 if it has none.
      error: the relative error of its outputs after pruning, as in
        `calibration_report`.
      compensated_error: the same error with the factors.
      factor_bytes: the bytes of the factors.
      stored_bytes: the bytes of the pruned leaf, compressed if its pattern can be.
      dense_bytes: the bytes of the dense leaf.
      reason: why it has no factors; empty if it has.
    """

    path: str
    shape: tuple[int, ...]
    decision: str
    rank: int
    error: float
    compensated_error: float
    factor_bytes: int
    stored_bytes: int
    dense_bytes: int
    reason: str = ""


@dataclass(frozen=True)
class CompensationReport(Tabular):
    """A report on what factors repair and take, which prints as a table.

    The column `bytes` has the compressed weight and its factors.

    Attributes:
      leaves: a `LeafCompensation` for each pruned leaf.
    """

    leaves: tuple[LeafCompensation, ...]

    def __iter__(self) -> Iterator[LeafCompensation]:
        return iter(self.leaves)

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        header = ("leaf", "shape", "rank", "error", "compensated", "bytes", "plan")
        return header, fold((leaf.path, _cells(leaf)) for leaf in self.leaves)


class Compensation(NamedTuple):
    """The result of `compensate_low_rank`.

    Attributes:
      factors: a tree like the parameters, with a `LowRank` for each compensated leaf
        and None for all others.
      report: what they repair, and their bytes.
    """

    factors: PyTree
    report: CompensationReport


def compensate_low_rank(
    params: PyTree,
    result: SearchResult,
    statistics: Any,
    *,
    rank: int,
    shrinkage: float = SHRINKAGE,
) -> Compensation:
    """Returns the factors that best repair the outputs of pruned layers.

    For each leaf the `a` and `b` that minimise `norm(x @ w - x @ (v + a @ b))` over the
    inputs `x` of the statistics, where `w` is the dense weight and `v` the pruned one.
    Nothing is trained. The pruned weights stay sparse if the layer adds `(x @ a) @ b`
    to its output; `apply_adapters(params, factors, None)` adds the products to the
    weights, to measure the result in an unchanged model.

    Args:
      params: the parameters before pruning.
      result: the result of a searcher.
      statistics: second moments, from `collect_statistics`.
      rank: the rank of the factors, at most the number of inputs or outputs.
      shrinkage: the fraction by which the second moment's entries off the diagonal are
        reduced first, as in `SparseGPTSearcher`.

    Returns:
      A `Compensation`. Factors have the dtype of their leaf. A leaf that is scaled
      before its product or has feature groups has none; the report says so.

    Raises:
      ValueError: the rank is not positive, `shrinkage` is not from 0 to 1, statistics
        do not fit, only mean squares were collected, or weights are not finite.
      TypeError: a pruned leaf has an integer dtype.

    >>> from jaxsparse import MagnitudeSearcher, collect_statistics
    >>> params = {"kernel": jnp.arange(128.0).reshape(16, 8)}
    >>> fn = lambda params, x: x @ params["kernel"]
    >>> statistics = collect_statistics(fn, params, [jnp.eye(16)])
    >>> result = MagnitudeSearcher("2:4").search(params)
    >>> print(compensate_low_rank(params, result, statistics, rank=1).report)
    leaf    shape  rank  error  compensated  bytes         plan
    kernel  16x8   1     0.637  0.012        368 of 512 B  2:4 along axis 0
    """
    if rank < 1:
        raise ValueError(f"the rank of factors must be at least 1, got {rank}")
    check_shrinkage(shrinkage)
    before, after = flatten(params), flatten(result.params).by_path
    sparse = result.plan.sparse
    shapes = {leaf.path: leaf.shape for leaf in sparse}
    by_path = match_statistics(shapes, statistics)
    for path in by_path:
        check_updatable(path, before.by_path[path])
    factors: dict[str, LowRank] = {}
    for path, leaf in by_path.items():
        if not _reason(leaf):
            pair = before.by_path[path], after[path]
            factors[path] = _compensate(*pair, leaf, shrinkage, rank)
    tree = before.unflatten({path: factors.get(path) for path in before.by_path})
    repaired = flatten(apply_adapters(result.params, tree, None)).by_path
    errors = jax.device_get(
        {
            path: [
                output_error(before.by_path[path], x[path], leaf)
                for x in (after, repaired)
            ]
            for path, leaf in by_path.items()
        }
    )
    report = CompensationReport(
        tuple(
            _leaf_report(
                leaf,
                before.by_path[leaf.path].dtype,
                factors.get(leaf.path),
                *map(float, errors[leaf.path]),
                reason=_reason(by_path[leaf.path]),
            )
            for leaf in sparse
        )
    )
    return Compensation(tree, report)


@partial(jax.jit, static_argnums=4)
def _compensate(
    before: Array,
    after: Array,
    statistics: LeafStatistics,
    shrinkage: ArrayLike,
    rank: int,
) -> LowRank:
    columns = statistics.columns
    gap = before.astype(jnp.float32) - after.astype(jnp.float32)
    moments = shrink(replicate(fill_starved(statistics).second_moment), shrinkage)
    solve = partial(best_factors, rank=rank)
    a, b = map_solves(solve, columns.to_matrices(gap), moments)
    sizes = lambda axes: tuple(columns.shape[axis] for axis in axes)
    batch = sizes(columns.batch)
    return LowRank(
        a.reshape(*batch, *sizes(columns.inputs), -1).astype(before.dtype),
        b.reshape(*batch, b.shape[1], *sizes(columns.outputs)).astype(before.dtype),
        columns.batch,
        columns.inputs,
        columns.outputs,
    )


def best_factors(
    gap: Float32[Array, "input output"],
    moment: Float32[Array, "input input"],
    *,
    rank: int,
) -> tuple[Float32[Array, "input rank"], Float32[Array, "rank output"]]:
    """Returns the factors whose product is closest to `gap` in the metric of a moment.

    Their rank is at most the number of inputs and of outputs.
    """
    product = partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    values, vectors = jnp.linalg.eigh(moment)
    # Rounding can make eigenvalues that are close to zero negative.
    root = jnp.sqrt(jnp.maximum(values, 0))[:, None] * vectors.T
    _, _, right = jnp.linalg.svd(product(root, gap), full_matrices=False)
    b = right[:rank]
    return product(gap, b.T), b


def _reason(statistics: LeafStatistics) -> str:
    """Returns why a leaf has no factors, or an empty string."""
    if statistics.factors is not None:
        return "scaled before its product"
    return "feature groups" if statistics.columns.groups > 1 else ""


def _leaf_report(
    leaf: LeafPlan,
    dtype: Any,
    factors: LowRank | None,
    error: float,
    compensated_error: float,
    *,
    reason: str,
) -> LeafCompensation:
    assert leaf.shape is not None
    return LeafCompensation(
        leaf.path,
        leaf.shape,
        leaf.decision,
        0 if factors is None else factors.rank,
        error,
        compensated_error,
        0 if factors is None else factors.nbytes,
        planned_bytes(leaf, dtype),
        planned_bytes(LeafPlan(leaf.path, leaf.shape), dtype),
        reason,
    )


def _cells(leaf: LeafCompensation) -> tuple[str, ...]:
    return (
        shape_text(leaf.shape),
        str(leaf.rank),
        f"{leaf.error:.3f}",
        f"{leaf.compensated_error:.3f}",
        bytes_text(leaf.stored_bytes + leaf.factor_bytes, leaf.dense_bytes),
        f"{leaf.decision}; no factors: {leaf.reason}" if leaf.reason else leaf.decision,
    )
