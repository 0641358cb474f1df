"""Pruning in the order of the computation: what is pruned first is seen by the rest."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, PyTree

from jaxsparse._calibration.accumulator import empty_accumulator
from jaxsparse._calibration.batches import (
    as_args,
    name_batch_in_errors,
    progress_bar,
    unpack,
)
from jaxsparse._calibration.collect import finish_statistics
from jaxsparse._calibration.leaf_statistics import LeafStatistics
from jaxsparse._calibration.matrices import LayerMatrices
from jaxsparse._calibration.observer import matrices_of, observer_rule
from jaxsparse._calibration.sparsegpt_searcher import SparseGPTSearcher
from jaxsparse._calibration.wanda import WandaSearcher
from jaxsparse._masks import SearchResult
from jaxsparse._patterns import Unstructured
from jaxsparse._plans import (
    LeafPlan,
    Plan,
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
from jaxsparse._trees import flatten, flatten_masks, is_array, map_named


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
    """Prunes a model stage by stage, each calibrated on what those before now give.

    So every layer makes up for the errors before it, too. The batches run through the
    model once; between stages their activations are kept on the device.

    Args:
      fn: a function `fn(params, *batch)`: a forward pass or a loss.
      params: a tree of arrays.
      batches: each a tuple of the further arguments, or the only one.
      searcher: a `SparseGPTSearcher` or a `WandaSearcher`; its plan decides what is
        pruned.
      boundaries: regular expressions of whole paths. The leaves that one matches are
        pruned together, the first that matches a leaf decides, and stages follow each
        other as the trace meets them: `[rf"layers/{i}/.*" for i in range(12)]`.
      weights: how much tokens count, as for `collect_statistics`.
      progress: whether to show a progress bar (needs `tqdm`).

    Returns:
      The pruned parameters, their masks and the plan.

    Raises:
      ValueError: a leaf that no boundary matches, one that is contracted inside of a
        loop, stages across each other; besides what `collect_statistics` and the
        searcher raise.

    >>> import jax.numpy as jnp
    >>> from jaxsparse import Rule
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {name: jax.random.normal(keys[0], (16, 16)) for name in ("a", "b")}
    >>> fn = lambda params, x: jnp.tanh(x @ params["a"]) @ params["b"]
    >>> batches = [jax.random.normal(key, (64, 16)) for key in keys[1:]]
    >>> searcher = SparseGPTSearcher([Rule(".*", "2:4", axis=0)])
    >>> found = prune_sequentially(fn, params, batches, searcher, boundaries=["a", "b"])
    >>> print((found.params["b"] == 0).mean())
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
    # One for every shape of a batch.
    cuts = {_shapes(batches[0]): _cut(first, params, stages)}
    flows = []
    for number, batch in enumerate(batches):
        with name_batch_in_errors(number, batch):
            key = _shapes(batch)
            if key not in cuts:
                program = trace(fn, params, as_args(batch), flat=True)
                cuts[key] = _cut(program, params, stages)
            flows.append(_begin(cuts[key], key, batch, weights))

    found = SearchResult(params, map_named(lambda *_: None, params), plan)
    for i, paths in enumerate(stages):
        columns = matrices_of(first, [plan[path] for path in paths])
        products = searcher.statistic == "second_moment"
        tallies = [
            empty_accumulator(one, products=products) for one in columns.values()
        ]
        observe = {key: _observer(cut, i, columns) for key, cut in cuts.items()}
        arrays, name = _arrays(found.params), f"stage {i + 1} of {len(stages)}"
        for number, (key, values, weight) in enumerate(
            progress_bar(flows, flows, name, progress)
        ):
            with name_batch_in_errors(number, batches[number]):
                tallies = observe[key](arrays, values, weight, number, tallies)
        known = dict(zip(columns, tallies, strict=True))
        found = _search(searcher, found, paths, finish_statistics(known, columns))
        if i + 1 < len(stages):
            forward = {key: _forwarder(cut, i) for key, cut in cuts.items()}
            arrays = _arrays(found.params)
            flows = [
                flow._replace(values=forward[flow.key](arrays, flow.values))
                for flow in flows
            ]
    return found


class _Cut(NamedTuple):
    """A program, cut into stages, and which of its inputs go to the first."""

    program: Program
    entry: list[int]
    stages: list[Stage]


class _Flow(NamedTuple):
    """A batch on its way: the key of its program, what is carried, its weights."""

    key: Any
    values: list[Any]
    weights: Array | None


def _check_boundaries(plan: Plan, boundaries: Sequence[str]) -> None:
    if isinstance(boundaries, str):
        raise TypeError(f"boundaries are a list of expressions, got {boundaries!r}")
    for leaf in plan.sparse:
        match leaf.pattern:
            case Unstructured(across_leaves=True):
                raise ValueError(
                    f"leaf {leaf.path!r} of shape {leaf.shape} is planned "
                    f"{leaf.decision}, and one threshold for leaves of several stages "
                    "can't be found in order: give leaves sparsities of their own"
                )
    for boundary in boundaries:
        if not any(re.fullmatch(boundary, leaf.path) for leaf in plan.sparse):
            raise ValueError(
                f"boundary {boundary!r} matches none of the {len(plan.sparse)} leaves "
                f"that are pruned. It has to match a whole path, such as "
                f"{plan.sparse[0].path!r}"
            )


def _stage_number(leaf: LeafPlan, boundaries: Sequence[str]) -> int:
    for number, boundary in enumerate(boundaries):
        if re.fullmatch(boundary, leaf.path):
            return number
    raise ValueError(
        f"no boundary matches leaf {leaf.path!r} of shape {leaf.shape}, which is "
        f"planned {leaf.decision}: add one that matches the whole path, or keep the "
        "leaf dense"
    )


def _shapes(batch: Any) -> Any:
    """What batches of one program have in common."""
    arrays, frame = unpack(batch)
    return frame, tuple((x.shape, x.dtype) for x in arrays)


def _cut(program: Program, params: PyTree, stages: Sequence[Sequence[str]]) -> _Cut:
    return _Cut(program, *split_program(program, len(_arrays(params)), stages))


def _begin(cut: _Cut, key: Any, batch: Any, weights: Callable[..., Array] | None):
    inputs, _ = unpack(as_args(batch))
    weight = None if weights is None else weights(*as_args(batch))
    return _Flow(key, [inputs[i] for i in cut.entry], weight)


def _arrays(params: PyTree) -> list[Any]:
    return [leaf for leaf in flatten(params)[0].values() if is_array(leaf)]


def _observer(
    cut: _Cut, i: int, columns: Mapping[str, LayerMatrices]
) -> Callable[..., Any]:
    @partial(jax.jit, donate_argnums=4)
    def observe(arrays, values, weights, number, tallies):
        rule = observer_rule(cut.program, columns, weights, number)
        # Without names in it, the program of one layer is that of the next: with a
        # compilation cache JAX compiles it once.
        known = dict(zip(columns, tallies, strict=True))
        stage = cut.stages[i].observed
        _, known = evaluate(stage, [*arrays, *values], rule, known)
        return [known[path] for path in columns]

    return observe


def _forwarder(cut: _Cut, i: int) -> Callable[..., Any]:
    stage = cut.stages[i].forward
    run = lambda arrays, values: evaluate(stage, [*arrays, *values], keep_equation)[0]
    return jax.jit(run)


def _search(
    searcher: SparseGPTSearcher | WandaSearcher,
    found: SearchResult,
    paths: Sequence[str],
    statistics: Mapping[str, LeafStatistics],
) -> SearchResult:
    """The result after another stage."""
    dense = lambda leaf: LeafPlan(leaf.path, leaf.shape, reason="another stage")
    leaves = [leaf if leaf.path in paths else dense(leaf) for leaf in found.plan.leaves]
    own = replace(searcher, plan=Plan(tuple(leaves)))
    params, new, _ = own.search(found.params, statistics)
    masks = flatten_masks(found.masks)
    masks |= {path: m for path, m in flatten_masks(new).items() if m is not None}
    return SearchResult(
        params, map_named(lambda path, _: masks[path], params), found.plan
    )
