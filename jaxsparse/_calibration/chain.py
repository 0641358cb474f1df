"""Chains of stages, each pruned with only its own parameters in memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
from jaxtyping import Array

from jaxsparse._calibration.collect import observe_batches
from jaxsparse._calibration.leaf_statistics import LeafStatistics
from jaxsparse._calibration.observer import matrices_of
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
      params: its parameters before.
      result: what the searcher returned.
      statistics: the second moments of the inputs of its pruned leaves.
    """

    params: PyTree
    result: SearchResult
    statistics: Mapping[str, LeafStatistics]


def prune_chain(
    stages: Sequence[ChainStage],
    batches: Sequence[Array],
    searcher: Callable[[Plan], Searcher],
) -> Iterator[PrunedStage]:
    """Prunes stage by stage, each calibrated on the pruned stages before it.

    As `prune_sequentially`, for models that are larger than memory: a stage is loaded
    when the one before is done. Stages with the same `fn` and equal plans, such as the
    blocks of a decoder, are compiled once.

    Args:
      stages: the stages in order.
      batches: the inputs of the first stage.
      searcher: makes the searcher of the plan of a stage, such as `WandaSearcher`.

    Yields:
      Each stage when it is pruned.

    Raises:
      ValueError: as `collect_statistics` and the searcher.
    """
    carried = list(map(_commit, batches))
    forward = {stage.fn: jax.jit(stage.fn) for stage in stages}
    for number, stage in enumerate(stages):
        params = _commit(stage.load())
        masks, statistics = map_named(lambda *_: None, params), {}
        result = SearchResult(params, masks, stage.plan)
        if stage.plan.sparse:
            program = trace(stage.fn, params, (carried[0],))
            matrices = matrices_of(program, stage.plan.sparse)
            statistics = observe_batches(
                stage.fn, params, program, carried, matrices, products=True
            )
            result = searcher(stage.plan).search(params, statistics)
        yield PrunedStage(params, result, statistics)
        if number + 1 < len(stages):
            # One by one, so that the inputs need no memory twice.
            for i, x in enumerate(carried):
                carried[i] = forward[stage.fn](result.params, x)


def _commit(tree: PyTree) -> PyTree:
    """Returns arrays that are committed to their devices, as searchers return them.

    JAX would compile a program again for arrays that are not.
    """
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding), tree)
