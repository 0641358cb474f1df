"""Low-rank compensation of what pruning lost, by second moments alone.

`a @ b` is the best change of a rank in the metric of the second moment `h` of a layer's
inputs: it minimises `trace((d - a @ b).T @ h @ (d - a @ b))`, where `d` is the dense
weight minus the pruned one. By Eckart and Young, the best `h**.5 @ a @ b` keeps the
first singular vectors of `h**.5 @ d`. With orthonormal rows of `b`, the right ones, the
best `a` is `d @ b.T`, and no inverse of `h` is needed: it may be singular.
"""

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
    SequentialResult,
    Shrinkage,
    best_shrinkage,
    check_shrinkage,
    map_solves,
    match_second_moments,
    output_error,
    plan_of_result,
    shrunk_moments,
)
from jaxsparse._masks import SearchResult
from jaxsparse._recovery.compensation_report import CompensationReport, report_leaf
from jaxsparse._recovery.low_rank import LowRank, add_product
from jaxsparse._trees import PyTree, flatten


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
    result: SearchResult | SequentialResult,
    statistics: Any,
    *,
    rank: int,
    shrinkage: Shrinkage = SHRINKAGE,
) -> Compensation:
    """Returns the factors that best repair the outputs of pruned layers.

    For each leaf the `a` and `b` that minimise `norm(x @ w - x @ (v + a @ b))` over the
    inputs `x` of the statistics, where `w` is the dense weight and `v` the pruned one.
    Nothing is trained. The pruned weights stay sparse if the layer adds `(x @ a) @ b`
    to its output; `apply_adapters(params, factors, None)` adds the products to the
    weights, to measure the result in an unchanged model.

    Args:
      params: the parameters before pruning.
      result: the result of a searcher, or of `prune_sequentially`.
      statistics: second moments, from `collect_statistics`.
      rank: the rank of the factors, at most the number of inputs or outputs.
      shrinkage: the fraction by which the second moment's entries off the diagonal are
        reduced first, or `"auto"`, as in `SparseGPTSearcher`.

    Returns:
      A `Compensation`. Factors have the dtype of their leaf. A leaf that is scaled
      before its product or has feature groups has none; the report says so.

    Raises:
      ValueError: the rank is not positive, `shrinkage` is not from 0 to 1 or "auto",
        parameters or statistics do not fit, only mean squares were collected, or
        weights are not finite.
      TypeError: a pruned leaf has an integer dtype, or `result` is none of pruning.

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
    sparse = plan_of_result("compensate_low_rank", params, result).sparse
    before, after = flatten(params), flatten(result.params).by_path
    pruned = {leaf.path: before.by_path[leaf.path] for leaf in sparse}
    by_path = match_second_moments(pruned, statistics, shrinkage)
    factors: dict[str, LowRank] = {}
    errors: dict[str, list[Array]] = {}
    for path, leaf in by_path.items():
        dense, repaired = before.by_path[path], after[path]
        if not _reason(leaf):
            compensate = partial(_compensate, dense, repaired, leaf, rank)
            add = partial(_add, repaired)
            factors[path] = best_shrinkage(compensate, add, dense, leaf, shrinkage)
            repaired = add(factors[path])
        errors[path] = [output_error(dense, x, leaf) for x in (after[path], repaired)]
    tree = before.unflatten({path: factors.get(path) for path in before.by_path})
    numbers = jax.device_get(errors)
    report = CompensationReport(
        tuple(
            report_leaf(
                leaf,
                before.by_path[leaf.path].dtype,
                factors.get(leaf.path),
                *map(float, numbers[leaf.path]),
                reason=_reason(by_path[leaf.path]),
            )
            for leaf in sparse
        )
    )
    return Compensation(tree, report)


_add = jax.jit(add_product)


@partial(jax.jit, static_argnums=3)
def _compensate(
    before: Array,
    after: Array,
    statistics: LeafStatistics,
    rank: int,
    shrinkage: ArrayLike,
) -> LowRank:
    columns = statistics.columns
    gap = before.astype(jnp.float32) - after.astype(jnp.float32)
    moments = shrunk_moments(statistics, shrinkage)
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
