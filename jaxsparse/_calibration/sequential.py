"""Sequential pruning: each stage is calibrated on the pruned stages before it."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from jaxsparse._calibration.accumulator import Accumulator, empty_accumulator
from jaxsparse._calibration.batches import (
    as_args,
    name_batch_in_errors,
    progress_bar,
    unpack,
)
from jaxsparse._calibration.collect import finish_statistics
from jaxsparse._calibration.leaf_statistics import LeafStatistics
from jaxsparse._calibration.matrices import LayerMatrices
from jaxsparse._calibration.observer import matrices_of, observed_params, observer_rule
from jaxsparse._calibration.sparsegpt_searcher import SparseGPTSearcher
from jaxsparse._calibration.wanda import WandaSearcher
from jaxsparse._masks import SearchResult
from jaxsparse._patterns import Unstructured
from jaxsparse._plans import (
    LeafPlan,
    Plan,
    expression_meant,
    plan_for,
)
from jaxsparse._trace import (
    Program,
    Stage,
    evaluate,
    keep_equation,
    order_stages,
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
        first = trace(fn, params, as_args(batches[0]), flat=True)
        stages = order_stages(first, stage_of)
    programs = {_signature(batches[0]): _split(first, params, stages)}
    carried = []
    for number, batch in enumerate(batches):
        with name_batch_in_errors(number, batch):
            key = _signature(batch)
            if key not in programs:
                program = trace(fn, params, as_args(batch), flat=True)
                programs[key] = _split(program, params, stages)
            carried.append(_first_inputs(programs[key], key, batch, weights))

    result = SearchResult(params, map_named(lambda *_: None, params), plan)
    for i, paths in enumerate(stages):
        matrices = matrices_of(first, [plan[path] for path in paths])
        arrays, name = _arrays(result.params), f"stage {i + 1} of {len(stages)}"
        stream = progress_bar(carried, carried, name, progress)
        products = searcher.statistic == "second_moment"
        observers = {
            key: _observer(program, i, matrices) for key, program in programs.items()
        }
        accumulators = [
            empty_accumulator(leaf, products=products) for leaf in matrices.values()
        ]
        for number, (key, values, weight) in enumerate(stream):
            with name_batch_in_errors(number, batches[number]):
                accumulators = observers[key](
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


def _signature(batch: Any) -> Any:
    """Returns what batches that share a program have in common."""
    arrays, structure = unpack(batch)
    return structure, tuple((x.shape, x.dtype) for x in arrays)


def _split(
    program: Program, params: PyTree, stages: Sequence[Sequence[str]]
) -> _SplitProgram:
    entry, split = split_program(program, len(_arrays(params)), stages)
    return _SplitProgram(program, entry, split)


def _first_inputs(
    program: _SplitProgram,
    key: Any,
    batch: Any,
    weights: Callable[..., Array] | None,
) -> _CarriedBatch:
    args = as_args(batch)
    inputs, _ = unpack(args)
    weight = None if weights is None else weights(*args)
    return _CarriedBatch(key, [inputs[i] for i in program.entry], weight)


def _arrays(params: PyTree) -> list[Any]:
    return [leaf for leaf in flatten(params)[0].values() if is_array(leaf)]


def _observer(
    program: _SplitProgram, i: int, matrices: Mapping[str, LayerMatrices]
) -> Callable[..., list[Accumulator]]:
    """Returns a compiled function that accumulates the inputs of stage `i`."""

    @partial(jax.jit, donate_argnums=4)
    def observe(arrays, values, weights, number, accumulators):
        rule = observer_rule(program.program, matrices, weights, number)
        # A list holds no names, so equal layers lower to the same program, and with a
        # compilation cache JAX compiles it only once.
        by_path = dict(zip(matrices, accumulators, strict=True))
        stage = program.stages[i].observed
        arrays = observed_params(program.program, matrices, arrays)
        _, by_path = evaluate(stage, [*arrays, *values], rule, by_path)
        return [by_path[path] for path in matrices]

    return observe


def _run_stage(
    programs: Mapping[Any, _SplitProgram],
    i: int,
    arrays: list[Any],
    carried: Sequence[_CarriedBatch],
) -> list[_CarriedBatch]:
    """Returns the batches after stage `i`, run on pruned parameters."""
    forward = {key: _forward(program.stages[i]) for key, program in programs.items()}
    return [
        batch._replace(values=forward[batch.key](arrays, batch.values))
        for batch in carried
    ]


def _forward(stage: Stage) -> Callable[..., Any]:
    @jax.jit
    def run(arrays, values):
        return evaluate(stage.forward, [*arrays, *values], keep_equation)[0]

    return run


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
