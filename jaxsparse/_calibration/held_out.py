"""Batches that are held out of the statistics, and choices made by them.

The error on tokens that nothing was fitted to shows what the error on calibration
tokens cannot: how far weights are fitted to chance.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import jax
import numpy as np

from jaxsparse._calibration.leaf_statistics import LeafStatistics
from jaxsparse._calibration.output_error import output_error
from jaxsparse._calibration.shrinkage import Shrinkage


#: The values that `shrinkage="auto"` chooses from.
SHRINKAGES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)

_Result = TypeVar("_Result")


def held_out_interval(share: float) -> int:
    """Returns `k` if every `k`-th batch is held out, 0 if none is.

    Args:
      share: the share of the batches.

    Raises:
      ValueError: the share is not from 0 to 0.5.
    """
    if not 0 <= share <= 0.5:
        raise ValueError(
            "held_out must be the share of the batches that is held out of the "
            f"statistics, from 0 to 0.5, such as 0.1, got {share}"
        )
    return round(1 / share) if share else 0


def is_held_out(number: int, interval: int) -> bool:
    """Returns whether a batch is the last of `interval` ones."""
    return interval > 0 and number % interval == interval - 1


def check_num_batches(batches: int, interval: int) -> None:
    """Raises unless there are batches enough for one of them to be held out.

    Raises:
      ValueError: there are fewer than `interval`.
    """
    if batches < interval:
        raise ValueError(
            f"held_out={1 / interval:g} holds out one batch of {interval}, and there "
            f"are {batches}: use smaller batches and more of them, or a larger share"
        )


def with_held_out(
    statistics: Mapping[str, LeafStatistics], held_out: Mapping[str, LeafStatistics]
) -> dict[str, LeafStatistics]:
    """Returns statistics together with those of held-out batches."""
    return {
        path: replace(leaf, held_out=held_out.get(path))
        for path, leaf in statistics.items()
    }


def check_held_out(
    statistics: Mapping[str, LeafStatistics], shrinkage: Shrinkage
) -> None:
    """Raises if the shrinkage is chosen by held-out tokens, and there are none.

    Raises:
      ValueError: the statistics of a leaf have no held-out part.
    """
    if shrinkage != "auto":
        return
    for path, leaf in statistics.items():
        if leaf.held_out is None:
            raise ValueError(
                "shrinkage='auto' takes the value of the lowest held-out error, but "
                f"the statistics of leaf {path!r} of shape {leaf.columns.shape} have "
                "no held-out part: pass collect_statistics(..., held_out=0.1)"
            )


def best_shrinkage(
    prune: Callable[[float], _Result],
    weight: Callable[[_Result], Any],
    leaf: Any,
    statistics: LeafStatistics,
    shrinkage: Shrinkage,
) -> _Result:
    """Returns the result for the best shrinkage by held-out error.

    Args:
      prune: returns the result for a shrinkage.
      weight: returns the pruned leaf from a result.
      leaf: the leaf before.
      statistics: its statistics, with a held-out part if the shrinkage is `"auto"`.
      shrinkage: the only shrinkage, or `"auto"`.
    """
    if shrinkage != "auto":
        return prune(shrinkage)
    results = [prune(value) for value in SHRINKAGES]
    held_out = statistics.held_out
    errors = [output_error(leaf, weight(result), held_out) for result in results]
    finite = np.nan_to_num(np.array(jax.device_get(errors)), nan=np.inf)
    return results[int(np.argmin(finite))]
