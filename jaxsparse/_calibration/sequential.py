"""Sequential pruning: each stage is calibrated on the pruned stages before it."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from jaxtyping import Array

from jaxsparse._calibration.accumulator import empty_accumulator
from jaxsparse._calibration.batches import (
    as_args,
    name_batch_in_errors,
    progress_bar,
    signature,
    token_weights,
    unpack,
)
from jaxsparse._calibration.collect import finish_statistics
from jaxsparse._calibration.leaf_statistics import LeafStatistics
from jaxsparse._calibration.observer import matrices_of
from jaxsparse._calibration.sparsegpt_searcher import SparseGPTSearcher
from jaxsparse._calibration.stage_programs import stage_program
from jaxsparse._calibration.wanda import WandaSearcher
from jaxsparse._masks import SearchResult
from jaxsparse._patterns import Unstructured
from jaxsparse._plans import (
    LeafPlan,
    Plan,
    expression_meant,
    plan_for,
)
from jaxsparse._sharding import commit_like
from jaxsparse._trace import (
    Program,
    Stage,
    inline_calls,
    order_stages,
    products_of,
    split_program,
    trace,
)
from jaxsparse._trees import PyTree, flatten, flatten_masks, is_array, map_named


def prune_sequentially(
    fn: Callable[..., Any],
    params: PyTree,
    batches: Iterable[Any],
    searcher: SparseGPTSearcher | WandaSearcher,
    *,
    boundaries: Sequence[str],
    weights: Callable[..., Array] | None = None,
    progress: bool = False,
) -> SearchResult:
    """Prunes a model stage by stage, each calibrated on the pruned stages before it.

    Every layer thus compensates for the errors of earlier layers, too. The batches run
    through the model once; between stages their activations stay on the device.

    Args:
      fn: a function `fn(params, *batch)`: a forward pass or a loss.
      params: a tree of arrays.
      batches: an iterable of batches, each a tuple of the further arguments of `fn`, or
        the only one.
      searcher: a `SparseGPTSearcher` or a `WandaSearcher`; its plan decides which
        leaves are pruned.
      boundaries: regular expressions that match whole paths. Each defines a stage, the
        leaves that it is the first to match, which are pruned together. Stages run in
        the order of the trace: `[rf"layers/{i}/.*" for i in range(12)]`.
      weights: token weights, as for `collect_statistics`.
      progress: whether to show a progress bar (requires `tqdm`).

    Returns:
      The pruned parameters, their masks and the plan.

    Raises:
      ValueError: no boundary matches a leaf, a leaf is contracted inside a loop, or
        stages overlap; besides the errors of `collect_statistics` and the searcher.

    >>> import jax.numpy as jnp
    >>> from jaxsparse import Rule
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {name: jax.random.normal(keys[0], (16, 16)) for name in ("a", "b")}
    >>> fn = lambda params, x: jnp.tanh(x @ params["a"]) @ params["b"]
    >>> batches = [jax.random.normal(key, (64, 16)) for key in keys[1:]]
    >>> searcher = SparseGPTSearcher([Rule(".*", "2:4", axis=0)])
    >>> result = prune_sequentially(
    ...     fn, params, batches, searcher, boundaries=["a", "b"]
    ... )
    >>> print((result.params["b"] == 0).mean())
    0.5
    """
    batches = list(batches)
    if not batches:
        raise ValueError("there are no batches: statistics need at least one")
    plan = plan_for(params, searcher.plan)
    _check_boundaries(plan, boundaries)
    stage_of = {leaf.path: _stage_number(leaf, boundaries) for leaf in plan.sparse}
    with name_batch_in_errors(0, batches[0]):
        first = inline_calls(trace(fn, params, as_args(batches[0])))
        stages = order_stages(first, stage_of)
    programs = {signature(batches[0]): _split(first, params, stages)}
    carried = []
    for number, batch in enumerate(batches):
        with name_batch_in_errors(number, batch):
            key = signature(batch)
            if key not in programs:
                program = inline_calls(trace(fn, params, as_args(batch)))
                order_stages(program, stage_of)  # raises if it has other products
                programs[key] = _split(program, params, stages)
            carried.append(_first_inputs(programs[key], key, batch, weights))

    result = SearchResult(params, map_named(lambda *_: None, params), plan)
    for i, paths in enumerate(stages):
        matrices = matrices_of(first, [plan[path] for path in paths])
        arrays, name = _arrays(result.params), f"stage {i + 1} of {len(stages)}"
        stream = progress_bar(carried, carried, name, progress)
        products = searcher.statistic == "second_moment"
        observers = {
            key: stage_program(program, stages[i], matrices, forward=False)
            for key, (program, _, stages) in programs.items()
        }
        accumulators = [
            commit_like(empty_accumulator(leaf, products=products), arrays)
            for leaf in matrices.values()
        ]
        for number, (key, values, weight) in enumerate(stream):
            with name_batch_in_errors(number, batches[number]):
                _, accumulators = observers[key](
                    arrays, values, weight, number, accumulators
                )
        by_path = dict(zip(matrices, accumulators, strict=True))
        statistics = finish_statistics(by_path, matrices)
        result = _prune_stage(searcher, result, paths, statistics)
        if i + 1 < len(stages):
            carried = _run_stage(programs, i, _arrays(result.params), carried)
    return result


class _SplitProgram(NamedTuple):
    """A program split into stages.

    Attributes:
      program: the whole program.
      entry: the indices of its inputs that the first stage takes.
      stages: the stages.
    """

    program: Program
    entry: list[int]
    stages: list[Stage]


class _CarriedBatch(NamedTuple):
    """A batch between two stages.

    Attributes:
      key: the key of its program.
      values: the inputs of the next stage.
      weights: its token weights, or None.
    """

    key: Any
    values: list[Any]
    weights: Array | None


def _check_boundaries(plan: Plan, boundaries: Sequence[str]) -> None:
    if isinstance(boundaries, str):
        raise TypeError(
            f"boundaries must be a list of regular expressions, got {boundaries!r}"
        )
    for leaf in plan.sparse:
        match leaf.pattern:
            case Unstructured(across_leaves=True):
                raise ValueError(
                    f"leaf {leaf.path!r} of shape {leaf.shape} is planned "
                    f"{leaf.decision!r}, and one threshold for leaves of several "
                    "stages can't be computed stage by stage: plan a sparsity for each "
                    "leaf, with across_leaves=False"
                )
    for boundary in boundaries:
        if meant := expression_meant(boundary, [leaf.path for leaf in plan.sparse]):
            raise ValueError(
                f"boundary {boundary!r} does not match the leaves of this name, "
                f"because it is read as a regular expression: write {meant!r}"
            )
        if not any(re.fullmatch(boundary, leaf.path) for leaf in plan.sparse):
            raise ValueError(
                f"boundary {boundary!r} matches none of the {len(plan.sparse)} leaves "
                "that are pruned. It must match a whole path, such as "
                f"{plan.sparse[0].path!r}"
            )


def _stage_number(leaf: LeafPlan, boundaries: Sequence[str]) -> int:
    for number, boundary in enumerate(boundaries):
        if re.fullmatch(boundary, leaf.path):
            return number
    raise ValueError(
        f"no boundary matches leaf {leaf.path!r} of shape {leaf.shape}, which is "
        f"planned {leaf.decision!r}: add one that matches the whole path, or keep the "
        "leaf dense"
    )


def _split(
    program: Program, params: PyTree, stages: Sequence[Sequence[str]]
) -> _SplitProgram:
    products = [products_of(program, leaves) for leaves in stages]
    entry, split = split_program(program, len(_arrays(params)), products)
    return _SplitProgram(program, entry, split)


def _first_inputs(
    program: _SplitProgram,
    key: Any,
    batch: Any,
    weights: Callable[..., Array] | None,
) -> _CarriedBatch:
    inputs, _ = unpack(as_args(batch))
    values = [inputs[i] for i in program.entry]
    return _CarriedBatch(key, values, token_weights(weights, batch))


def _arrays(params: PyTree) -> list[Any]:
    return [leaf for leaf in flatten(params)[0].values() if is_array(leaf)]


def _run_stage(
    programs: Mapping[Any, _SplitProgram],
    i: int,
    arrays: list[Any],
    carried: Sequence[_CarriedBatch],
) -> list[_CarriedBatch]:
    """Returns the batches after stage `i`, run on pruned parameters."""
    forward = {
        key: stage_program(program, stages[i], {})
        for key, (program, _, stages) in programs.items()
    }
    return [
        batch._replace(values=forward[batch.key](arrays, batch.values)[0])
        for batch in carried
    ]


def _prune_stage(
    searcher: SparseGPTSearcher | WandaSearcher,
    result: SearchResult,
    paths: Sequence[str],
    statistics: Mapping[str, LeafStatistics],
) -> SearchResult:
    """Returns the result with the leaves of another stage pruned."""
    leaves = tuple(
        leaf
        if leaf.path in paths
        else LeafPlan(leaf.path, leaf.shape, reason="another stage")
        for leaf in result.plan.leaves
    )
    stage_searcher = replace(searcher, plan=Plan(leaves))
    params, stage_masks, _ = stage_searcher.search(result.params, statistics)
    masks = flatten_masks(result.masks)
    for path, mask in flatten_masks(stage_masks).items():
        if mask is not None:
            masks[path] = mask
    tree = map_named(lambda path, _: masks[path], params)
    return SearchResult(params, tree, result.plan)
