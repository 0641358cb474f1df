"""Calibration: statistics of the inputs of each layer, collected over batches."""

import math
from collections.abc import Callable, Iterable, Mapping, Sized
from functools import partial
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxsparse._calibration.accumulator import (
    NO_BAD_BATCH,
    Accumulator,
    empty_accumulator,
)
from jaxsparse._calibration.batches import (
    as_args,
    name_batch_in_errors,
    progress_bar,
    signature,
    token_weights,
    unpack,
)
from jaxsparse._calibration.held_out import (
    check_num_batches,
    held_out_interval,
    is_held_out,
    with_held_out,
)
from jaxsparse._calibration.leaf_statistics import LeafStatistics, Statistic
from jaxsparse._calibration.matrices import LayerMatrices
from jaxsparse._calibration.observer import matrices_of
from jaxsparse._calibration.stage_programs import CutProgram, cut_program
from jaxsparse._plans import PlanLike, plan_for
from jaxsparse._sharding import commit_like
from jaxsparse._trace import Program, inline_calls, trace
from jaxsparse._trees import PyTree, flatten, is_array


#: Returned by `next` after the last batch, because a batch may be None.
_END = object()


def collect_statistics(
    fn: Callable[..., Any],
    params: PyTree,
    batches: Iterable[Any],
    *,
    plan: PlanLike = "2:4",
    statistic: Statistic = "second_moment",
    weights: Callable[..., Array] | None = None,
    memory_limit: int | None = None,
    held_out: float = 0.0,
    progress: bool = False,
) -> dict[str, LeafStatistics]:
    """Runs a model on batches and measures the inputs that each leaf is multiplied by.

    The inputs are read where the trace of `fn` contracts the leaf, so this works for
    any JAX model, without hooks or patched layers. Sums are kept in float32.

    A leaf that is used several times, or in pieces, has the sum over its uses, and so
    have all its outputs; the product of inputs from different uses counts as zero.
    Products whose inputs may not all be meant for the leaf raise an error.

    A weight that is multiplied by factors before its product, whether constants or
    parameters and along any axes, has the inputs of that product, and the factors are
    in the statistics too: searchers score and update the weight times its factor.
    Factors computed from the leaf itself, such as one over its norm, are held fixed,
    and rounding is ignored. Factors that depend on the batch must be the same in all
    batches. Any other function of a weight raises an error.

    Args:
      fn: a function `fn(params, *batch)`: a forward pass or a loss. Operations that its
        result does not depend on are not run.
      params: a tree of arrays.
      batches: an iterable of batches, each a tuple of the further arguments of `fn`, or
        the only one. It is read once, or once a pass if `memory_limit` requires
        several. Each combination of array shapes and other values is compiled once,
        and blocks of `fn` that are alike share one program.
      plan: a plan, rules or a pattern: the leaves to collect statistics of.
      statistic: `"mean_square"` of each input, which suffices for `WandaSearcher`, or
        `"second_moment"`, the mean product of every two.
      weights: a traceable function `weights(*batch)` that returns token weights: bool
        (False for padding, which may be NaN) or non-negative real numbers. Its axes are
        the leading axes of the tokens of every leaf, or are merged into the first one
        there; `fn` must not reorder tokens.
      memory_limit: the bytes that statistics may take on the device while they are
        collected; the leaves that do not fit are left to further passes over the
        batches. Each pass takes at least one leaf.
      held_out: the share of the batches that is held out of the statistics: 0.1 is
        every tenth batch. They have statistics of their own, `held_out`, by which
        `calibration_report` shows how weights do on tokens that they were not fitted
        to, and `shrinkage="auto"` chooses.
      progress: whether to show a progress bar (requires `tqdm`).

    Returns:
      A `LeafStatistics` for every leaf that the plan prunes, by canonical path.

    Raises:
      ValueError: there are no batches or no tokens, or too few batches to hold one out;
        inputs are not finite (the error names the leaf and the batch); the inputs of a
        leaf cannot be read; weights do not fit; several passes are needed and `batches`
        is an iterator. An error that
        `fn` raises on a batch gets a note with the number and the shapes of the batch.
      ImportError: `progress` without `tqdm`.

    >>> params = {"kernel": jnp.eye(16, 8)}
    >>> batches = [jnp.ones((10, 16)), jnp.zeros((30, 16))]
    >>> fn = lambda params, x: x @ params["kernel"]
    >>> statistics = collect_statistics(fn, params, batches, statistic="mean_square")
    >>> statistics["kernel"].mean_square[0, :3], statistics["kernel"].tokens
    (Array([0.25, 0.25, 0.25], dtype=float32), Array([40.], dtype=float32))
    """
    interval = held_out_interval(held_out)
    if isinstance(batches, Sized):
        check_num_batches(max(len(batches), 1), interval)
    stream = iter(batches)
    first = next(stream, _END)
    if first is _END:
        raise ValueError("there are no batches: pass at least one")
    plan = plan_for(params, plan)
    products = statistic == "second_moment"
    if not products and statistic != "mean_square":
        raise ValueError(
            f"statistic must be 'mean_square' or 'second_moment', got {statistic!r}"
        )
    with name_batch_in_errors(0, first):
        program = trace(fn, params, as_args(first))
        matrices = matrices_of(program, plan.sparse)
    passes = _passes(matrices, products, memory_limit, 2 if interval else 1)
    if len(passes) > 1 and stream is batches:
        raise ValueError(
            f"memory_limit={memory_limit} needs {len(passes)} passes over the batches, "
            "and an iterator can be read only once: give a list"
        )
    collected: dict[str, LeafStatistics] = {}
    for i, leaves in enumerate(passes):
        stream = chain([first], stream) if i == 0 else iter(batches)
        name = f"pass {i + 1} of {len(passes)}"
        stream = progress_bar(stream, batches, name, progress)
        collected |= observe_batches(
            fn,
            params,
            program,
            stream,
            leaves,
            products=products,
            weights=weights,
            interval=interval,
        )
    return {path: collected[path] for path in matrices}


def _passes(
    matrices: Mapping[str, LayerMatrices],
    products: bool,
    limit: int | None,
    parts: int,
) -> list[dict[str, LayerMatrices]]:
    """Returns the leaves of each pass, in order, as many as fit."""
    passes: list[dict[str, LayerMatrices]] = []
    remaining = 0
    for path, leaf in matrices.items():
        moments = leaf.inputs_per_problem ** (2 if products else 1)
        nbytes = 4 * leaf.num_problems * moments
        nbytes += 4 * math.prod(leaf.shape) if leaf.scaled else 0
        nbytes *= parts
        if not passes or (limit is not None and nbytes > remaining):
            passes.append({})
            remaining = limit or 0
        passes[-1][path] = leaf
        remaining -= nbytes
    return passes


def observe_batches(
    fn: Callable[..., Any],
    params: PyTree,
    program: Program,
    batches: Iterable[Any],
    matrices: Mapping[str, LayerMatrices],
    *,
    products: bool,
    weights: Callable[..., Array] | None = None,
    interval: int = 0,
) -> dict[str, LeafStatistics]:
    """Returns the statistics of some leaves, from one pass over the batches.

    Args:
      fn: the function that runs on the batches.
      params: its parameters.
      program: its program for batches like the first one.
      batches: the batches.
      matrices: the leaves.
      products: whether second moments are collected, or mean squares.
      weights: token weights, as for `collect_statistics`.
      interval: every which batch is held out, 0 for none.
    """
    arrays = [x for x in flatten(params).by_path.values() if is_array(x)]
    new = lambda leaf: commit_like(empty_accumulator(leaf, products=products), arrays)
    parts = [
        {path: new(leaf) for path, leaf in matrices.items()}
        for _ in range(2 if interval else 1)
    ]
    programs: dict[Any, CutProgram] = {}
    number = 0
    for number, batch in enumerate(batches):
        with name_batch_in_errors(number, batch):
            key, args = signature(batch), as_args(batch)
            if key not in programs:
                program = trace(fn, params, args) if programs else program
                programs[key] = cut_program(inline_calls(program), matrices)
            inputs, _ = unpack(args)
            values = [inputs[i] for i in programs[key].entry]
            values = commit_like(values, arrays)
            weight = token_weights(weights, batch)
            accumulators = parts[is_held_out(number, interval)]
            for stage in programs[key].stages:
                sums = [accumulators[path] for path in stage.leaves]
                values, sums = stage(arrays, values, weight, number, sums)
                accumulators |= zip(stage.leaves, sums, strict=True)
    check_num_batches(number + 1, interval)
    return finish_statistics(parts[0], matrices, *parts[1:])


def finish_statistics(
    accumulators: Mapping[str, Accumulator],
    matrices: Mapping[str, LayerMatrices],
    held_out: Mapping[str, Accumulator] | None = None,
) -> dict[str, LeafStatistics]:
    """Returns the means over tokens.

    Args:
      accumulators: the sums.
      matrices: the leaves.
      held_out: the sums of held-out batches.

    Raises:
      ValueError: a sum or a factor is not finite, or a leaf has no tokens.
    """
    _check_sums(accumulators, matrices)
    means = {path: _mean(accumulators[path], matrices[path]) for path in matrices}
    if held_out is None:
        return means
    _check_sums(held_out, matrices, " in the held-out batches")
    held_out_means = {path: _mean(held_out[path], matrices[path]) for path in matrices}
    return with_held_out(means, held_out_means)


def _has_bad_factors(accumulator: Accumulator) -> Any:
    factors = accumulator.factors
    return False if factors is None else jnp.isinf(factors).any()


@partial(jax.jit, static_argnums=1)
def _mean(accumulator: Accumulator, matrices: LayerMatrices) -> LeafStatistics:
    sums = accumulator.sums
    tokens = accumulator.tokens.reshape(-1, *[1] * (sums.ndim - 1))
    mean = jnp.where(tokens > 0, sums / tokens, 0)
    factors = accumulator.factors
    if factors is not None:  # weights that no product used have none
        factors = jnp.where(jnp.isnan(factors), 1, factors)
    return LeafStatistics(mean, accumulator.tokens, matrices, factors)


def _check_sums(
    accumulators: Mapping[str, Accumulator],
    matrices: Mapping[str, LayerMatrices],
    where: str = "",
) -> None:
    """Raises if a sum or a factor is not finite, or a leaf has no tokens."""
    checks = jax.device_get(
        {
            path: (leaf.bad_batch, leaf.tokens, _has_bad_factors(leaf))
            for path, leaf in accumulators.items()
        }
    )
    path, (bad_batch, *_) = min(checks.items(), key=lambda item: int(item[1][0]))
    if bad_batch != NO_BAD_BATCH:
        raise ValueError(
            f"the inputs of leaf {path!r} of shape {matrices[path].shape} are not "
            "finite, their squares overflow, or their weights are negative, in batch "
            f"{int(bad_batch)}: drop the batch, mask padding by weights, or run the "
            "model in a wider dtype"
        )
    for path, (_, tokens, bad_factors) in checks.items():
        if bad_factors:
            raise ValueError(
                f"leaf {path!r} of shape {matrices[path].shape} is multiplied by "
                "factors that are not finite, or that differ between its products or "
                "batches: use the same factors everywhere, or keep it dense by a rule"
            )
        if not tokens.any():
            raise ValueError(
                f"leaf {path!r} of shape {matrices[path].shape} met no tokens{where}: "
                "there are none, or their weights are all zero. Use batches that reach "
                "it, or keep it dense by a rule"
            )
