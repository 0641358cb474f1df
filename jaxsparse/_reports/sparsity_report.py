"""Reports of sparsity: what was pruned, how much of it, and what that cost."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxsparse._compressed import (
    as_dense_shapes,
    decompress,
    describe_storage,
    is_as_planned,
    is_compressed,
    require_stored_values,
)
from jaxsparse._masks import match_masks, search_masks
from jaxsparse._patterns import Pattern, constant_arrays
from jaxsparse._plans import (
    LeafPlan,
    Plan,
    PlanLike,
    could_be_pruned,
    is_plan_like,
    plan_for,
    plan_no_array,
)
from jaxsparse._reports.measure import measure_leaf
from jaxsparse._trees import (
    PyTree,
    Tabular,
    bytes_text,
    flatten,
    fold_with_others,
    is_array,
    is_numeric,
    percent_text,
    shape_text,
    weights_text,
)


@dataclass(frozen=True)
class LeafReport:
    """One leaf of a report.

    Attributes:
      path: the canonical path.
      shape: the leaf's shape; None if it is not an array.
      sparsity: the fraction of zeros in it; None if it does not hold real numbers.
      masked: the fraction of its weights that its mask prunes; None without a mask.
      magnitude_kept: the share of the sum of its magnitudes that its mask keeps; None
        without a mask.
      nonfinite: the number of NaN and infinities in it.
      pattern: the planned pattern; None if dense or unknown.
      axis: the planned group axis; None if dense or unknown.
      decision: the plan for the leaf, in words.
      reason: why it stays dense; empty for a pruned leaf.
      stored: how it is compressed, in words; empty for an array.
      stored_bytes: its size in bytes; None if it is not an array.
      dense_bytes: its size in bytes if its zeros are stored; None if it is not an
        array.
    """

    path: str
    shape: tuple[int, ...] | None
    sparsity: float | None
    masked: float | None
    magnitude_kept: float | None
    nonfinite: int
    pattern: Pattern | None
    axis: int | None
    decision: str
    reason: str
    stored: str
    stored_bytes: int | None
    dense_bytes: int | None


@dataclass(frozen=True)
class SparsityReport(Tabular):
    """A report on every leaf of a tree, which prints as a table.

    A dense leaf that is all zeros, as biases are at first, has no sparsity in the
    table: its plan says `all zeros`. The total counts its zeros. Notebooks display the
    report as HTML and `rich` as its own table; `json.dumps(report.as_dict())` is its
    JSON.

    Attributes:
      leaves: a `LeafReport` for each leaf.
    """

    leaves: tuple[LeafReport, ...]

    def __iter__(self) -> Iterator[LeafReport]:
        return iter(self.leaves)

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        has_bytes = self._has_bytes
        if has_bytes:
            header = ("leaf", "shape", "sparsity", "kept", "bytes", "plan")
        else:
            header = ("leaf", "shape", "sparsity", "kept", "plan")
        rows = [(leaf, (leaf.path, _cells(leaf, has_bytes))) for leaf in self.leaves]
        return header, fold_with_others(
            [row for leaf, row in rows if leaf.shape is not None],
            [row for leaf, row in rows if leaf.shape is None],
        )

    def _total(self) -> tuple[str, ...]:
        weights = [leaf for leaf in self.leaves if leaf.sparsity is not None]
        sizes = [math.prod(leaf.shape or ()) for leaf in weights]
        zeros = sum(
            size * (leaf.sparsity or 0)
            for leaf, size in zip(weights, sizes, strict=True)
        )
        stored_bytes = sum(leaf.stored_bytes or 0 for leaf in self.leaves)
        dense_bytes = sum(leaf.dense_bytes or 0 for leaf in self.leaves)
        pruned = sum(leaf.masked is not None for leaf in self.leaves)
        dense = sum(
            leaf.masked is None and could_be_pruned(leaf.shape, leaf.reason)
            for leaf in self.leaves
        )
        return (
            "total",
            weights_text(sum(sizes)),
            percent_text(zeros / max(sum(sizes), 1)),
            "-",
            *([bytes_text(stored_bytes, dense_bytes)] if self._has_bytes else []),
            f"{pruned} of {pruned + dense} pruned",
        )

    @property
    def _has_bytes(self) -> bool:
        return any(leaf.stored for leaf in self.leaves)


def sparsity_report(params: PyTree, plan: PlanLike | PyTree = "2:4") -> SparsityReport:
    """Reports the zeros and the kept magnitude of every leaf, or why it stays dense.

    It reads values, so it runs outside `jit`.

    Args:
      params: a tree of arrays, pruned or not, some of which may be `Compressed`.
      plan: a plan, rules or a pattern, to report the magnitude that the best masks for
        these weights would keep; or a tree of masks, to report what these keep.

    Returns:
      A `SparsityReport`.

    Raises:
      ValueError, TypeError: the plan or the masks do not fit, or a leaf has no values.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.arange(128.0).reshape(16, 8), "bias": jnp.ones(8)}
    >>> print(sparsity_report(params, "2:4"))
    leaf    shape  sparsity  kept    plan
    bias    8      0.0 %     -       dense: bias, norm or scalar
    kernel  16x8   0.8 %     56.3 %  2:4 along axis 0
    total   136    0.7 %     -       1 of 1 pruned
    """
    leaves = flatten(params, is_leaf=is_compressed).by_path
    for path, leaf in leaves.items():
        require_stored_values(path, leaf)
    shapes = as_dense_shapes(params)
    if is_plan_like(plan):
        plan = plan_for(shapes, plan)
        masks = _best_masks(leaves, plan)
        no_array = {path: plan_no_array(path, leaf) for path, leaf in leaves.items()}
        constant = constant_arrays({x.path: leaves[x.path] for x in plan.sparse})
        planned = {x.path: x.with_constant(x.path in constant) for x in plan.leaves}
        decisions = {**no_array, **planned}
    else:
        masks = match_masks(flatten(shapes).by_path, plan)
        decisions = {
            path: LeafPlan(path, None, reason="no mask" if masks[path] is None else "")
            for path in leaves
        }
    return SparsityReport(
        tuple(
            _leaf_report(path, leaf, masks.get(path), decisions[path])
            for path, leaf in leaves.items()
        )
    )


def _best_masks(leaves: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Returns the masks of the plan, without leaves that are compressed as planned."""
    weights: dict[str, Any] = {}
    searched: list[LeafPlan] = []
    for leaf in plan.sparse:
        weight = leaves[leaf.path]
        if is_compressed(weight):
            if is_as_planned(weight, leaf):
                continue
            weight = decompress(weight)
        weights[leaf.path] = weight
        searched.append(leaf)
    return search_masks(weights, searched)


def _leaf_report(path: str, leaf: Any, mask: Any, decision: LeafPlan) -> LeafReport:
    size = math.prod(leaf.shape) if is_numeric(leaf) else 0
    values = jax.device_get(measure_leaf(leaf, mask)) if size else None
    masked = kept = None
    if values and mask is not None:
        masked, kept = float(values["masked"]) / size, _share(values)
    elif values and is_compressed(leaf) and is_as_planned(leaf, decision):
        masked, kept = 1 - leaf.pattern.density, 1.0
    stored, dense = _bytes(leaf)
    return LeafReport(
        path=path,
        shape=tuple(leaf.shape) if is_array(leaf) else None,
        sparsity=None if values is None else float(values["zeros"]) / size,
        masked=masked,
        magnitude_kept=kept,
        nonfinite=0 if values is None else int(values["nonfinite"]),
        pattern=decision.pattern,
        axis=decision.axis,
        decision=decision.decision,
        reason=decision.reason,
        stored=describe_storage(leaf) if is_compressed(leaf) else "",
        stored_bytes=stored,
        dense_bytes=dense,
    )


def _bytes(leaf: Any) -> tuple[int | None, int | None]:
    """Returns the bytes of a leaf as it is stored, and with its zeros."""
    if not is_array(leaf):
        return None, None
    dense = math.prod(leaf.shape) * leaf.dtype.itemsize
    return (leaf.nbytes if is_compressed(leaf) else dense), dense


def _share(values: Mapping[str, np.ndarray]) -> float:
    """Returns the share of the magnitude that is kept; 1 if there is none."""
    return float(values["kept"] / values["magnitude"]) if values["magnitude"] else 1.0


def _cells(leaf: LeafReport, has_bytes: bool) -> tuple[str, ...]:
    has_mask_only = leaf.pattern is None and not leaf.reason
    plan = "masked" if has_mask_only else leaf.decision
    planned = f"{leaf.pattern} along axis {leaf.axis}"
    if leaf.stored not in ("", planned):
        plan += f"; stored {leaf.stored.removeprefix(f'{planned} ')}"
    if leaf.nonfinite:
        plan += f"; {leaf.nonfinite} values are NaN or infinite"
    sparsity = "-" if leaf.sparsity is None else percent_text(leaf.sparsity)
    if leaf.sparsity == 1 and leaf.masked is None:
        # Biases start as zeros: nothing was pruned, so that is no sparsity.
        sparsity, plan = "-", f"{plan}; all zeros"
    cells = [
        "-" if leaf.shape is None else shape_text(leaf.shape),
        sparsity,
        "-" if leaf.magnitude_kept is None else percent_text(leaf.magnitude_kept),
    ]
    if has_bytes:
        stored, dense = leaf.stored_bytes, leaf.dense_bytes
        if stored is None or dense is None:
            cells.append("-")
        else:
            cells.append(bytes_text(stored, dense))
    return (*cells, plan)
