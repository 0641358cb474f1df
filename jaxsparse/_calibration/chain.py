"""Chains of stages, each pruned with only its own parameters in memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
from jaxtyping import Array

from jaxsparse._calibration.collect import observe_batches
from jaxsparse._calibration.leaf_statistics import LeafStatistics
from jaxsparse._calibration.observer import matrices_of
from jaxsparse._calibration.wanda import wanda_scores
from jaxsparse._channels import (
    PermutationResult,
    can_permute,
    find_groups,
    permute_channels,
)
from jaxsparse._masks import Searcher, SearchResult
from jaxsparse._plans import Plan
from jaxsparse._trace import trace
from jaxsparse._trees import PyTree, map_named


class ChainStage(NamedTuple):
    """A stage of a chain.

    Attributes:
      fn: `fn(params, x)`, whose result is the `x` of the next stage.
      plan: the plan of its parameters; all may stay dense.
      load: returns its parameters, a tree of arrays.
    """

    fn: Callable[[PyTree, Array], Array]
    plan: Plan
    load: Callable[[], PyTree]


class PrunedStage(NamedTuple):
    """A stage that was pruned.

    Attributes:
      params: its parameters before, permuted if its channels are.
      result: what the searcher returned.
      statistics: the second moments of the inputs of its pruned leaves.
      permutation: how its channels were permuted; None if they were not.
    """

    params: PyTree
    result: SearchResult
    statistics: Mapping[str, LeafStatistics]
    permutation: PermutationResult | None = None


def prune_chain(
    stages: Sequence[ChainStage],
    batches: Sequence[Array],
    searcher: Callable[[Plan], Searcher],
    *,
    permute: bool = False,
) -> Iterator[PrunedStage]:
    """Prunes stage by stage, each calibrated on the pruned stages before it.

    As `prune_sequentially`, for models that are larger than memory: a stage is loaded
    when the one before is done. Stages with the same `fn` and equal plans, such as the
    blocks of a decoder, are compiled once.

    Args:
      stages: the stages in order.
      batches: the inputs of the first stage.
      searcher: makes the searcher of the plan of a stage, such as `WandaSearcher`.
      permute: whether the channels within each stage are permuted before it is pruned,
        by Wanda's scores. What goes from stage to stage keeps its order.

    Yields:
      Each stage when it is pruned.

    Raises:
      ValueError: as `collect_statistics`, `permute_channels` and the searcher.
    """
    carried = list(map(_commit, batches))
    forward = {stage.fn: jax.jit(stage.fn) for stage in stages}
    for number, stage in enumerate(stages):
        params = _commit(stage.load())
        masks, statistics = map_named(lambda *_: None, params), {}
        result, permutation = SearchResult(params, masks, stage.plan), None
        if stage.plan.sparse:
            program = trace(stage.fn, params, (carried[0],))
            matrices = matrices_of(program, stage.plan.sparse)
            statistics = observe_batches(
                stage.fn, params, program, carried, matrices, products=True
            )
            if permute:
                permutation = _permute(stage, params, carried[0], statistics)
            if permutation is not None:
                params = permutation.params
                statistics = permutation.permute(statistics)
            result = searcher(stage.plan).search(params, statistics)
        yield PrunedStage(params, result, statistics, permutation)
        if number + 1 < len(stages):
            # One by one, so that the inputs need no memory twice.
            for i, x in enumerate(carried):
                carried[i] = forward[stage.fn](result.params, x)


def _permute(
    stage: ChainStage,
    params: PyTree,
    x: Array,
    statistics: Mapping[str, LeafStatistics],
) -> PermutationResult | None:
    """Permutes the channels within a stage; returns None if there are none."""
    groups = find_groups(stage.fn, params, (x,))
    if not can_permute(groups, stage.plan):
        return None
    scores = wanda_scores(params, statistics)
    return permute_channels(
        params, stage.plan, stage.fn, (x,), scores=scores, groups=groups
    )


def _commit(tree: PyTree) -> PyTree:
    """Returns arrays that are committed to their devices, as searchers return them.

    JAX would compile a program again for arrays that are not.
    """
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding), tree)
