"""Reports of calibrated pruning: what it does to the outputs of each layer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, PyTree

from jaxsparse._calibration import LeafStatistics, match_statistics
from jaxsparse._masks import (
    SearchResult,
    search_masks,
)
from jaxsparse._patterns import as_bool
from jaxsparse._trees import (
    Tabular,
    flatten,
    fold,
    shape_text,
)


@dataclass(frozen=True)
class LeafError:
    """One leaf of a calibration report.

    Attributes:
      path: the canonical path.
      shape: its shape.
      decision: what was planned, in words.
      tokens: how many its statistics are of.
      error: the relative error of its outputs, `norm(x @ (w - v)) / norm(x @ w)` over
        the inputs `x` of the statistics; nothing is ever lost of outputs that are zero.
      magnitude_error: the same if it were pruned by magnitude.
    """

    path: str
    shape: tuple[int, ...]
    decision: str
    tokens: float
    error: float
    magnitude_error: float


@dataclass(frozen=True)
class CalibrationReport(Tabular):
    """A report on every leaf that was pruned. Print it for a table.

    Attributes:
      leaves: one `LeafError` a leaf.
    """

    leaves: tuple[LeafError, ...]

    def __iter__(self) -> Iterator[LeafError]:
        return iter(self.leaves)

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        cells = lambda leaf: (
            shape_text(leaf.shape),
            f"{leaf.tokens:g}",
            f"{leaf.error:.3f}",
            f"{leaf.magnitude_error:.3f}",
            leaf.decision,
        )
        header = ("leaf", "shape", "tokens", "error", "magnitude", "plan")
        return header, fold((leaf.path, cells(leaf)) for leaf in self.leaves)


def calibration_report(
    params: PyTree, result: SearchResult, statistics: Any
) -> CalibrationReport:
    """The relative error of every pruned layer's outputs, beside magnitude's.

    It comes from second moments alone, so it is the error on the inputs that were
    collected: those of the dense model, unless statistics of another one are given. To
    see what weights that were fitted do on other inputs, give statistics of those.

    Args:
      params: the parameters before pruning.
      result: what a searcher made of them.
      statistics: second moments, from `collect_statistics`.

    Returns:
      A `CalibrationReport`.

    Raises:
      ValueError: statistics that do not fit, or only mean squares.

    >>> from jaxsparse import MagnitudeSearcher, collect_statistics
    >>> params = {"kernel": jnp.arange(128.0).reshape(16, 8)}
    >>> fn = lambda params, x: x @ params["kernel"]
    >>> statistics = collect_statistics(fn, params, [jnp.eye(16)])
    >>> result = MagnitudeSearcher("2:4").search(params)
    >>> print(calibration_report(params, result, statistics))
    leaf    shape  tokens  error  magnitude  plan
    kernel  16x8   16      0.637  0.637      2:4 along axis 0
    """
    sparse = result.plan.sparse
    before, after = flatten(params)[0], flatten(result.params)[0]
    known = match_statistics({leaf.path: leaf.shape for leaf in sparse}, statistics)
    magnitude = search_masks(before, sparse)
    errors = {
        path: (
            _error(before[path], after[path], one),
            _error(before[path], _masked(before[path], magnitude[path]), one),
            jnp.sum(one.tokens),
        )
        for path, one in known.items()
    }
    numbers = jax.device_get(errors)
    rows = []
    for leaf in sparse:
        assert leaf.shape is not None
        error, of_magnitude, tokens = map(float, numbers[leaf.path])
        rows.append(
            LeafError(leaf.path, leaf.shape, leaf.decision, tokens, error, of_magnitude)
        )
    return CalibrationReport(tuple(rows))


@jax.jit
def _masked(leaf: Array, mask: Array) -> Array:
    return jnp.where(as_bool(mask, leaf), leaf, jnp.zeros((), leaf.dtype))


@jax.jit
def _error(before: Array, after: Array, known: LeafStatistics) -> Float32[Array, ""]:
    split = lambda leaf: known.columns.split(leaf.astype(jnp.float32))
    # Problems of more tokens count for more: their norms are sums over tokens.
    tokens = known.tokens[:, None, None]

    def norm(w):
        product = jnp.matmul(known.second_moment, w, precision=lax.Precision.HIGHEST)
        # Of next to nothing rounding can leave less than nothing.
        return jnp.sqrt(jnp.maximum(jnp.sum(tokens * w * product), 0))

    whole = norm(split(before))
    lost = norm(split(before) - split(after))
    return jnp.where(whole > 0, lost / whole, jnp.zeros((), jnp.float32))
