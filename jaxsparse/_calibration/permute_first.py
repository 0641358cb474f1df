"""Channels in the order that suits a searcher, before it prunes."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array

from jaxsparse._calibration.batches import as_args
from jaxsparse._calibration.collect import collect_statistics
from jaxsparse._calibration.stage_checkpoint import StageCheckpoint
from jaxsparse._calibration.wanda import wanda_scores
from jaxsparse._channels import (
    ChannelGroups,
    PermutationResult,
    PermutedGroup,
    find_all_consumers,
    find_groups,
    permute_channels,
)
from jaxsparse._plans import Plan
from jaxsparse._trees import PyTree


#: The name of the permutations in a checkpoint, and of their gains in it.
_FILE = "permutations"
_GAINS = "gains"


def permute_first(
    fn: Callable[..., Any],
    params: PyTree,
    batches: Sequence[Any],
    plan: Plan,
    weights: Callable[..., Array] | None,
    saved: StageCheckpoint | None,
    *,
    by_magnitude: bool,
    progress: bool,
) -> PermutationResult:
    """Permutes the channels of a dense model.

    Args:
      fn: a function `fn(params, *batch)`, verified on the first batch.
      params: a tree of arrays.
      batches: the batches, for Wanda's scores; all are read.
      plan: which leaves will be pruned.
      weights: token weights, as for `collect_statistics`.
      saved: where the permutations are, or are saved: rounding on a GPU may differ in
        another process, and another order would not fit the stages that are done.
      by_magnitude: whether the scores are magnitudes, not Wanda's.
      progress: whether to show a progress bar of the batches.

    Raises:
      ValueError: as `collect_statistics` and `permute_channels`.
    """
    args = as_args(batches[0])
    groups = find_groups(fn, params, args)
    find_all_consumers(groups, plan)  # raises before the batches are read
    if saved is not None and (loaded := _load(saved, params, groups)) is not None:
        return loaded
    scores = None
    if not by_magnitude:
        statistics = collect_statistics(
            fn,
            params,
            batches,
            plan=plan,
            statistic="mean_square",
            weights=weights,
            progress=progress,
        )
        scores = wanda_scores(params, statistics)
    result = permute_channels(params, plan, fn, args, scores=scores, groups=groups)
    if saved is not None:
        _save(saved, result)
    return result


def _save(saved: StageCheckpoint, result: PermutationResult) -> None:
    arrays = {str(i): order for i, order in result.permutations.items()}
    gains = json.dumps(list(result.gains.items()))
    saved.write(_FILE, {**arrays, _GAINS: np.array(gains)})


def _load(
    saved: StageCheckpoint, params: PyTree, groups: ChannelGroups
) -> PermutationResult | None:
    arrays = saved.read(_FILE)
    if arrays is None:
        return None
    gains = {
        number: PermutedGroup(tuple(leaves), *others)
        for number, (leaves, *others) in json.loads(str(arrays.pop(_GAINS)))
    }
    permutations = {int(number): order for number, order in arrays.items()}
    result = PermutationResult(params, permutations, gains, groups)
    return result._replace(params=result.permute(params))
