"""Sequential pruning: each stage is calibrated on the pruned stages before it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any, get_args

import jax.numpy as jnp
from jaxtyping import Array

from jaxsparse._calibration.accumulator import empty_accumulator
from jaxsparse._calibration.admm_searcher import ADMMSearcher
from jaxsparse._calibration.batches import name_batch_in_errors, progress_bar
from jaxsparse._calibration.carried_batches import (
    SplitProgram,
    StageBatch,
    enter_stages,
    run_stage,
)
from jaxsparse._calibration.collect import finish_statistics
from jaxsparse._calibration.held_out import (
    check_num_batches,
    held_out_interval,
    is_held_out,
)
from jaxsparse._calibration.leaf_statistics import LeafStatistics, Statistic
from jaxsparse._calibration.observer import matrices_of
from jaxsparse._calibration.permute_first import permute_first
from jaxsparse._calibration.reconstruction import Reconstruction, reconstruct_stage
from jaxsparse._calibration.sequential_result import (
    SequentialResult,
    recalibrated,
    with_leaves,
)
from jaxsparse._calibration.sparsegpt_searcher import SparseGPTSearcher
from jaxsparse._calibration.stage_checkpoint import open_checkpoint
from jaxsparse._calibration.stage_order import number_stages
from jaxsparse._calibration.stage_programs import stage_program
from jaxsparse._calibration.wanda import WandaSearcher
from jaxsparse._masks import MagnitudeSearcher
from jaxsparse._plans import LeafPlan, Plan, plan_for
from jaxsparse._sharding import commit_like
from jaxsparse._trace import Program
from jaxsparse._trees import (
    PyTree,
    flatten,
    flatten_masks,
    is_array,
    map_named,
    require_kind,
)


#: The searchers that prune in order.
SequentialSearcher = (
    SparseGPTSearcher | ADMMSearcher | WandaSearcher | MagnitudeSearcher
)


def prune_sequentially(
    fn: Callable[..., Any],
    params: PyTree,
    batches: Iterable[Any],
    searcher: SequentialSearcher,
    *,
    boundaries: Sequence[str],
    weights: Callable[..., Array] | None = None,
    progress: bool = False,
    held_out: float = 0.0,
    reconstruct: Reconstruction | None = None,
    recalibrate: Callable[[PyTree], PyTree] | None = None,
    permute: bool = False,
    checkpoint: str | PathLike[str] | None = None,
) -> SequentialResult:
    """Prunes a model stage by stage, each calibrated on the pruned stages before it.

    Every layer thus compensates for the errors of earlier layers, too. The batches run
    through the model once; between stages their activations stay on the device.

    Args:
      fn: a function `fn(params, *batch)`: a forward pass or a loss.
      params: a tree of arrays.
      batches: an iterable of batches, each a tuple of the further arguments of `fn`, or
        the only one.
      searcher: a `SparseGPTSearcher`, `ADMMSearcher`, `WandaSearcher` or
        `MagnitudeSearcher`; its plan decides which leaves are pruned.
      boundaries: regular expressions that match whole paths. Each defines a stage, the
        leaves that it is the first to match, which are pruned together. Stages run in
        the order of the trace: `[rf"layers/{i}/.*" for i in range(12)]`.
      weights: token weights, as for `collect_statistics`.
      progress: whether to show a progress bar (requires `tqdm`).
      held_out: the share of the batches that is held out of the statistics, as for
        `collect_statistics`; `shrinkage="auto"` chooses by them.
      reconstruct: how the weights of each pruned stage are trained, before the next
        stage is pruned, to give the outputs of the dense stage on the same inputs. The
        other floating parameters that the stage alone uses, such as biases and the
        gains of norms, are trained with them; embeddings are not. Padding must be
        finite. Its `held_out` takes the place of the other one.
      recalibrate: called with the parameters after each stage; returns them with other
        values of leaves that stay dense, such as batch statistics that
        `recalibrate_batch_stats` renewed. The next stage is calibrated with these.
      permute: whether the channels of `params` are permuted first, by
        `permute_channels` with its default key, so that n:m masks keep more. The scores
        are magnitudes for `MagnitudeSearcher`, else Wanda's, from another pass over the
        batches. `fn` is the same function of the result, whose leaves and masks are in
        the new order; `permutation` there has the order.
      checkpoint: a folder in which each stage is saved when it is done. A call with the
        same arguments goes on after the last of them, with the same result.

    Returns:
      The pruned parameters, their masks, the plan and the permutation.

    Raises:
      ValueError: no boundary matches a leaf, a leaf is contracted inside a loop, or
        stages overlap; the checkpoint is that of other parameters, batches or settings;
        besides the errors of `collect_statistics`, `permute_channels` and the searcher.
      TypeError: `searcher` is none of these.

    >>> import jax
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
        raise ValueError("there are no batches: pass at least one")
    remedy = 'give SparseGPTSearcher("2:4"), for example'
    require_kind("prune_sequentially", searcher, get_args(SequentialSearcher), remedy)
    plan = plan_for(params, searcher.plan)
    stage_of = number_stages(plan, boundaries)
    held = _held_out_batches(len(batches), held_out, reconstruct)
    programs, stages, carried = enter_stages(fn, params, batches, stage_of, weights)
    saved = None
    if checkpoint is not None:
        settings = replace(searcher, plan=plan), held, _without_functions(reconstruct)
        arrays = flatten(params).by_path
        saved = open_checkpoint(checkpoint, arrays, batches, stages, permute, *settings)
    permutation = None
    if permute:
        read = [batch for i, batch in enumerate(batches) if i not in held]
        permutation = permute_first(
            fn,
            params,
            read,
            plan,
            weights,
            saved,
            by_magnitude=isinstance(searcher, MagnitudeSearcher),
            progress=progress,
        )
        params = permutation.params

    dense, masks = dict(flatten(params).by_path), map_named(lambda *_: None, params)
    result = SequentialResult(params, masks, plan, permutation)
    for i, paths in enumerate(stages):
        done = saved.load(i, dense) if saved else None
        if done is None:
            name = f"stage {i + 1} of {len(stages)}"
            stream = progress_bar(carried, carried, name, progress)
            statistics: dict[str, LeafStatistics] = {}
            if not isinstance(searcher, MagnitudeSearcher):
                statistics = _observe_stage(
                    programs, i, result, paths, stream, held, searcher.statistic
                )
            done = _prune_stage(searcher, result, paths, statistics)
            if reconstruct is not None:
                done = _reconstruct_stage(
                    reconstruct, programs, i, dense, result, done, carried
                )
            if saved:
                saved.save(i, *done)
        result = with_leaves(result, *done)
        if recalibrate is not None:
            result = recalibrated(result, recalibrate)
        if i + 1 < len(stages):
            carried = run_stage(programs, i, _arrays(result.params), carried)
    return result


#: New values of leaves, and the masks of those that were pruned, by path.
_Done = tuple[dict[str, Any], dict[str, Any]]


def _arrays(params: PyTree) -> list[Any]:
    return [leaf for leaf in flatten(params).by_path.values() if is_array(leaf)]


def _held_out_batches(
    count: int, held_out: float, reconstruct: Reconstruction | None
) -> set[int]:
    """Returns the numbers of the batches that are held out of the statistics."""
    if reconstruct is not None:
        return set(reconstruct.held_out_batches(count))
    interval = held_out_interval(held_out)
    check_num_batches(count, interval)
    return {i for i in range(count) if is_held_out(i, interval)}


def _without_functions(reconstruct: Reconstruction | None) -> Any:
    """Returns the settings that can be compared with those of another process."""
    return reconstruct and replace(reconstruct, optimizer=None, report=None)


def _observe_stage(
    programs: Mapping[Any, SplitProgram],
    i: int,
    result: SequentialResult,
    paths: Sequence[str],
    batches: Iterable[StageBatch],
    held: set[int],
    statistic: Statistic,
) -> dict[str, LeafStatistics]:
    """Returns the statistics of the leaves of stage `i`."""
    first = next(iter(programs.values())).program
    matrices = matrices_of(first, [result.plan[path] for path in paths])
    arrays = _arrays(result.params)
    observers = {
        key: stage_program(program, stages[i], matrices, forward=False)
        for key, (program, _, stages) in programs.items()
    }
    products = statistic == "second_moment"
    new = lambda leaf: commit_like(empty_accumulator(leaf, products=products), arrays)
    parts = [[new(leaf) for leaf in matrices.values()] for _ in range(2 if held else 1)]
    for number, (key, values, weight) in enumerate(batches):
        with name_batch_in_errors(number, values):
            part = number in held
            _, parts[part] = observers[key](arrays, values, weight, number, parts[part])
    by_path = [dict(zip(matrices, part, strict=True)) for part in parts]
    return finish_statistics(by_path[0], matrices, *by_path[1:])


def _prune_stage(
    searcher: SequentialSearcher,
    result: SequentialResult,
    paths: Sequence[str],
    statistics: Mapping[str, LeafStatistics],
) -> _Done:
    """Returns the leaves of another stage, pruned."""
    leaves = tuple(
        leaf
        if leaf.path in paths
        else LeafPlan(leaf.path, leaf.shape, reason="another stage")
        for leaf in result.plan.leaves
    )
    stage_searcher = replace(searcher, plan=Plan(leaves))
    params, masks, _ = stage_searcher.search(result.params, statistics)
    pruned, masks = flatten(params).by_path, flatten_masks(masks)
    return {path: pruned[path] for path in paths}, {path: masks[path] for path in paths}


def _reconstruct_stage(
    settings: Reconstruction,
    programs: Mapping[Any, SplitProgram],
    i: int,
    dense: Mapping[str, Any],
    result: SequentialResult,
    done: _Done,
    carried: Sequence[StageBatch],
) -> _Done:
    """Returns the leaves of stage `i`, trained."""
    pruned, masks = done
    program, _, stages = next(iter(programs.values()))
    paths = [path for path, leaf in dense.items() if is_array(leaf)]
    others = {j for k, stage in enumerate(stages) if k != i for j in stage.params}
    own = {paths[j] for j in stages[i].params if j not in others}
    current = {**flatten(result.params).by_path, **pruned}
    trained = {
        path: current[path]
        for path in paths
        if path in pruned or (path in own and _is_trainable(program, path))
    }
    new = reconstruct_stage(
        settings,
        {key: split.stages[i] for key, split in programs.items()},
        paths,
        [dense[path] for path in paths],
        [current[path] for path in paths],
        trained,
        masks,
        carried,
    )
    return new, masks


def _is_trainable(program: Program, path: str) -> bool:
    """Whether a leaf is a float that no lookup reads, as embeddings are."""
    is_float = jnp.issubdtype(program.leaves[path].dtype, jnp.floating)
    return is_float and all(use.kind != "gather" for use in program.uses[path])
