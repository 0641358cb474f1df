"""Calibration: statistics of what the layers of a model are given."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxsparse._calibration.accumulator import (
    NO_BAD_BATCH,
    Accumulator,
    empty_accumulator,
)
from jaxsparse._calibration.batches import (
    BatchStructure,
    as_args,
    name_batch_in_errors,
    progress_bar,
    unpack,
)
from jaxsparse._calibration.leaf_statistics import LeafStatistics, Statistic
from jaxsparse._calibration.matrices import LayerMatrices
from jaxsparse._calibration.observer import matrices_of, observer_rule
from jaxsparse._plans import PlanLike, plan_for
from jaxsparse._trace import (
    evaluate,
    trace,
)
from jaxsparse._trees import flatten, is_array


#: What there is behind the last batch, as None might be one.
_NOTHING = object()


def collect_statistics(
    fn: Callable[..., Any],
    params: PyTree,
    batches: Iterable[Any],
    *,
    plan: PlanLike = "2:4",
    statistic: Statistic = "second_moment",
    weights: Callable[..., Array] | None = None,
    memory_limit: int | None = None,
    progress: bool = False,
) -> dict[str, LeafStatistics]:
    """Runs a model on batches and measures what each leaf is multiplied by.

    The inputs are read where the trace of `fn` contracts the leaf, so it works for any
    JAX model: there are no hooks and nothing is patched. Sums are kept in float32. A
    leaf that is used several times, or in pieces, has the sum over its uses, and so
    have all its outputs; products between inputs that meet it in different places count
    as zero. A weight that is scaled, or goes through a function, before its product is
    taken to be multiplied by what its product is. Where inputs might be counted that
    are not meant for a leaf, that is an error.

    Args:
      fn: a function `fn(params, *batch)`: a forward pass or a loss. What its result
        does not depend on is not run.
      params: a tree of arrays.
      batches: each a tuple of the further arguments, or the only one. Read once, or
        several times if the memory is limited. There is one program for all batches
        of the same shapes, and of the same values of what is no array.
      plan: a plan, rules or a pattern: which leaves to look at.
      statistic: `"mean_square"` of each input, enough for `WandaSearcher`, or
        `"second_moment"`, the mean product of every two.
      weights: a traceable function `weights(*batch)` of how much tokens count: bool
        (padding is left out, NaN in it too) or real numbers that are not negative. Its
        axes are the leading axes of the tokens of every leaf, or are merged into the
        first one there; `fn` must not bring tokens into another order.
      memory_limit: bytes that statistics may take on the device while they are
        collected; leaves that do not fit wait for another pass over the batches. Each
        pass takes one leaf at least.
      progress: whether to show a progress bar (needs `tqdm`).

    Returns:
      A `LeafStatistics` for every leaf that the plan prunes, by canonical path.

    Raises:
      ValueError: no batches, or no tokens; inputs that are not finite, naming leaf and
        batch; a leaf whose inputs can't be read; weights that do not fit; an iterator
        where several passes are needed. What `fn` raises on a batch is raised with the
        number and the shapes of the batch.
      ImportError: `progress` without `tqdm`.

    >>> params = {"kernel": jnp.eye(16, 8)}
    >>> batches = [jnp.ones((10, 16)), jnp.zeros((30, 16))]
    >>> fn = lambda params, x: x @ params["kernel"]
    >>> statistics = collect_statistics(fn, params, batches, statistic="mean_square")
    >>> statistics["kernel"].mean_square[0, :3], statistics["kernel"].tokens
    (Array([0.25, 0.25, 0.25], dtype=float32), Array([40.], dtype=float32))
    """
    stream = iter(batches)
    first = next(stream, _NOTHING)
    if first is _NOTHING:
        raise ValueError("there are no batches: statistics need at least one")
    plan = plan_for(params, plan)
    products = statistic == "second_moment"
    if not products and statistic != "mean_square":
        raise ValueError(
            f"no statistic {statistic!r}: 'mean_square' or 'second_moment'"
        )
    with name_batch_in_errors(0, first):
        columns = matrices_of(trace(fn, params, as_args(first)), plan.sparse)
    passes = _passes(columns, products, memory_limit)
    if len(passes) > 1 and stream is batches:
        raise ValueError(
            f"memory_limit={memory_limit} needs {len(passes)} passes over the batches, "
            "and an iterator can be read once: give a list"
        )
    collected: dict[str, LeafStatistics] = {}
    for i, some in enumerate(passes):
        each = chain([first], stream) if i == 0 else iter(batches)
        each = progress_bar(each, batches, f"pass {i + 1} of {len(passes)}", progress)
        collected |= _collect(fn, params, each, some, products, weights)
    return {path: collected[path] for path in columns}


def _passes(
    columns: Mapping[str, LayerMatrices], products: bool, limit: int | None
) -> list[dict[str, LayerMatrices]]:
    """The leaves of each pass, as many as fit."""
    passes: list[dict[str, LayerMatrices]] = []
    room = 0
    for path, one in columns.items():
        size = 4 * one.problems * one.channels ** (2 if products else 1)
        if not passes or (limit is not None and size > room):
            passes.append({})
            room = limit or 0
        passes[-1][path] = one
        room -= size
    return passes


def _collect(
    fn: Callable[..., Any],
    params: PyTree,
    batches: Iterable[Any],
    columns: Mapping[str, LayerMatrices],
    products: bool,
    weights: Callable[..., Array] | None,
) -> dict[str, LeafStatistics]:
    """The statistics of some leaves, from one pass over the batches."""
    leaves, structure = flatten(params)
    names = [path for path, leaf in leaves.items() if is_array(leaf)]
    arrays = [leaves[path] for path in names]

    @partial(jax.jit, static_argnums=2, donate_argnums=4)
    def observe(arrays, inputs, frame: BatchStructure, number, tallies):
        known = {**leaves, **dict(zip(names, arrays, strict=True))}
        params = structure.unflatten(known.values())
        args = as_args(frame.fill(inputs))
        program = trace(fn, params, args)
        weight = None if weights is None else weights(*args)
        rule = observer_rule(program, columns, weight, number)
        given = [*arrays, *program.inputs]
        return evaluate(program.bound, given, rule, tallies)[1]

    tallies = {
        path: empty_accumulator(c, products=products) for path, c in columns.items()
    }
    for number, batch in enumerate(batches):
        with name_batch_in_errors(number, batch):
            tallies = observe(arrays, *unpack(batch), number, tallies)
    return finish_statistics(tallies, columns)


def finish_statistics(
    tallies: Mapping[str, Accumulator], columns: Mapping[str, LayerMatrices]
) -> dict[str, LeafStatistics]:
    """The means of what was added up.

    Raises:
      ValueError: a sum is not finite, or of nothing.
    """
    _check_sums(tallies, columns)
    return {path: _mean(tallies[path], columns[path]) for path in columns}


@partial(jax.jit, static_argnums=1)
def _mean(tally: Accumulator, columns: LayerMatrices) -> LeafStatistics:
    tokens = tally.tokens.reshape(-1, *[1] * (tally.sums.ndim - 1))
    mean = jnp.where(tokens > 0, tally.sums / tokens, 0)
    return LeafStatistics(mean, tally.tokens, columns)


def _check_sums(
    tallies: Mapping[str, Accumulator], columns: Mapping[str, LayerMatrices]
) -> None:
    """Raises for sums that are not finite, or of nothing."""
    seen = {path: (t.bad, t.tokens) for path, t in tallies.items()}
    seen = jax.device_get(seen)
    path, (bad, _) = min(seen.items(), key=lambda item: int(item[1][0]))
    if bad != NO_BAD_BATCH:
        raise ValueError(
            f"the inputs of leaf {path!r} of shape {columns[path].shape} are not "
            "finite, their squares overflow, or their weights are negative, in batch "
            f"{int(bad)}: leave the batch out, mask padding by weights, or run the "
            "model in a wider dtype"
        )
    for path, (_, count) in seen.items():
        if not count.any():
            raise ValueError(
                f"leaf {path!r} of shape {columns[path].shape} met no tokens: there "
                "are none, or their weights are all zero"
            )
