"""Reports of calibrated pruning: the error of the outputs of each layer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse._calibration import (
    SequentialResult,
    match_statistics,
    output_error,
    plan_of_result,
    starved_problems,
)
from jaxsparse._masks import SearchResult, mask_leaf, search_masks
from jaxsparse._plans import LeafPlan
from jaxsparse._trees import PyTree, Tabular, flatten, fold, shape_text


@dataclass(frozen=True)
class LeafError:
    """One leaf of a calibration report.

    Attributes:
      path: the canonical path.
      shape: the leaf's shape.
      decision: the plan for the leaf, in words.
      tokens: the number of tokens of its statistics.
      error: the relative error of its outputs, `norm(x @ (w - v)) / norm(x @ w)` over
        the inputs `x` of the statistics; 0 if the outputs are zero.
      magnitude_error: the same error if it were pruned by magnitude.
      starved: the number of its problems, such as experts, that met no tokens, and that
        calibrated searchers therefore prune by magnitude.
      held_out: the same error on the batches that were held out of the statistics, None
        if none were.
    """

    path: str
    shape: tuple[int, ...]
    decision: str
    tokens: float
    error: float
    magnitude_error: float
    starved: int = 0
    held_out: float | None = None


@dataclass(frozen=True)
class CalibrationReport(Tabular):
    """A report on the error of every pruned leaf, which prints as a table.

    Attributes:
      leaves: a `LeafError` for each leaf.
    """

    leaves: tuple[LeafError, ...]

    def __iter__(self) -> Iterator[LeafError]:
        return iter(self.leaves)

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        held_out = any(leaf.held_out is not None for leaf in self.leaves)
        columns = ["leaf", "shape", "tokens", "error", "magnitude", "plan"]
        if held_out:
            columns.insert(4, "held out")
        cells = ((leaf.path, _cells(leaf, held_out)) for leaf in self.leaves)
        return tuple(columns), fold(cells)


def calibration_report(
    params: PyTree, result: SearchResult | SequentialResult, statistics: Any
) -> CalibrationReport:
    """Reports the error of each pruned leaf's outputs, beside that of magnitude.

    The error is computed from second moments alone, so it is the error on the inputs
    that were collected: those of the dense model, unless the statistics are of another
    one. The error on the batches that `collect_statistics` held out is beside it. To
    measure fitted weights on other inputs, pass the statistics of those.

    Args:
      params: the parameters before pruning.
      result: the result of a searcher, or of `prune_sequentially`.
      statistics: second moments, from `collect_statistics`.

    Returns:
      A `CalibrationReport`.

    Raises:
      ValueError: parameters or statistics do not fit, or only mean squares were
        collected.
      TypeError: `result` is not the result of pruning.

    >>> from jaxsparse import MagnitudeSearcher, collect_statistics
    >>> params = {"kernel": jnp.arange(128.0).reshape(16, 8)}
    >>> fn = lambda params, x: x @ params["kernel"]
    >>> statistics = collect_statistics(fn, params, [jnp.eye(16)])
    >>> result = MagnitudeSearcher("2:4").search(params)
    >>> print(calibration_report(params, result, statistics))
    leaf    shape  tokens  error  magnitude  plan
    kernel  16x8   16      0.637  0.637      2:4 along axis 0
    """
    sparse = plan_of_result("calibration_report", params, result).sparse
    before, after = flatten(params).by_path, flatten(result.params).by_path
    shapes = {leaf.path: leaf.shape for leaf in sparse}
    by_path = match_statistics(shapes, statistics)
    magnitude = search_masks(before, sparse)
    errors = {
        path: (
            output_error(before[path], after[path], leaf),
            output_error(before[path], mask_leaf(before[path], magnitude[path]), leaf),
            jnp.sum(leaf.tokens),
            jnp.sum(starved_problems(leaf)),
            None
            if leaf.held_out is None
            else output_error(before[path], after[path], leaf.held_out),
        )
        for path, leaf in by_path.items()
    }
    numbers = jax.device_get(errors)
    return CalibrationReport(
        tuple(_leaf_error(leaf, *numbers[leaf.path]) for leaf in sparse)
    )


def _leaf_error(
    leaf: LeafPlan,
    error: Any,
    magnitude_error: Any,
    tokens: Any,
    starved: Any,
    held_out: Any,
) -> LeafError:
    assert leaf.shape is not None
    return LeafError(
        leaf.path,
        leaf.shape,
        leaf.decision,
        float(tokens),
        float(error),
        float(magnitude_error),
        int(starved),
        None if held_out is None else float(held_out),
    )


def _cells(leaf: LeafError, held_out: bool) -> tuple[str, ...]:
    error = "" if leaf.held_out is None else f"{leaf.held_out:.3f}"
    return (
        shape_text(leaf.shape),
        f"{leaf.tokens:g}",
        f"{leaf.error:.3f}",
        *([error] if held_out else []),
        f"{leaf.magnitude_error:.3f}",
        f"{leaf.decision}; {leaf.starved} without tokens: by magnitude"
        if leaf.starved
        else leaf.decision,
    )
