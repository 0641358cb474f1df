"""Reports of low-rank compensation: what factors repair and take."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxsparse._compressed import planned_bytes
from jaxsparse._plans import LeafPlan
from jaxsparse._recovery.low_rank import LowRank
from jaxsparse._trees import Tabular, bytes_text, fold, shape_text


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


def report_leaf(
    leaf: LeafPlan,
    dtype: Any,
    factors: LowRank | None,
    error: float,
    compensated_error: float,
    *,
    reason: str,
) -> LeafCompensation:
    """Returns the entry of one leaf, of which `factors` are None for a reason."""
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
