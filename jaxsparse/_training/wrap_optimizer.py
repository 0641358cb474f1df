"""Masks inside any Optax optimizer: pruned weights stay exactly zero."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, UInt8, UInt32

from jaxsparse._masks import kept_count, match_entries, search_masks
from jaxsparse._plans import (
    LeafPlan,
    Plan,
    PlanLike,
    counted_groups,
    plan_for_part,
    plan_or_rules,
)
from jaxsparse._training.first_masks import first_masks
from jaxsparse._training.masked_optimizer import (
    Masks,
    counts_move,
    masked_init,
    masked_update,
    next_count,
    plan_for_masks,
    require_params,
    require_state,
    update_masks,
)
from jaxsparse._training.schedule import Schedule, check_every, check_schedule
from jaxsparse._training.state import SparseState
from jaxsparse._trees import (
    PyTree,
    flatten,
    flatten_masks,
    flatten_with_keys,
    replace_masks,
)


def wrap_optimizer(
    inner: optax.GradientTransformation,
    plan: PlanLike | None = None,
    *,
    masks: PyTree | None = None,
    schedule: Schedule | None = None,
    every: int = 1,
    mask_gradients: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that pruned weights are exactly zero after every update.

    `params + updates` is exactly zero at every masked position, for any finite
    parameters: the first update from dense parameters prunes them. The inner optimizer
    sees masked parameters and masked gradients, so weight decay and iterate averages
    are those of the sparse network. The guarantee holds from the first update that is
    applied. It requires that no later transformation changes the updates. Gradient
    clipping *outside* the wrapper also counts the gradients of pruned weights.

    The recipe is ASP's (Mishra et al. 2021, arXiv:2104.08378): prune a trained network
    once, then train it again under fixed masks with the schedule of the first training.

    Checkpoints: restore this state with its masks, or call `tx.init` on the restored
    parameters. Parameters that are loaded after `tx.init` ran on random ones would
    train under the masks of the random weights; `check_sparsity` detects that.

    Args:
      inner: any optimizer.
      plan: a plan, rules or a pattern. The masks are made in `init` from the parameters
        given there. The default is `"2:4"` if no masks are given either.
      masks: the initial masks, bool or packed, which are copied. The default is the
        best masks by magnitude.
      schedule: the progress of pruning, from 0 (dense) to 1 (the pattern), as a
        function of the step. Masks are refreshed when the progress moves: an n:m
        pattern then keeps `m - round(progress * (m - n))` weights in each group, an
        unstructured pattern prunes `progress` times its sparsity. Each mask lies within
        the one before, and the inner optimizer's moments of newly pruned weights are
        set to zero. With both a plan and masks, the masks are the initial ones and the
        plan refreshes them.
      every: masks are refreshed only at multiples of this step.
      mask_gradients: whether the inner optimizer sees zeros as the gradients of pruned
        weights.

    Returns:
      A gradient transformation with the state `SparseState`. `update` needs the
      parameters and passes extra arguments on to the inner optimizer.

    Raises:
      ValueError: a plan and masks without a schedule, a schedule with masks alone, or
        `every < 1`; in `init`, masks or a plan that do not fit the parameters, or
        nothing prunable.

    >>> params = {"kernel": jnp.arange(128.0).reshape(16, 8)}
    >>> tx = wrap_optimizer(optax.sgd(0.1), "2:4")
    >>> state = tx.init(params)
    >>> updates, state = tx.update(params, state, params)
    >>> optax.apply_updates(params, updates)["kernel"][:4, 0]
    Array([ 0. ,  0. , 14.4, 21.6], dtype=float32)
    """
    if masks is not None and (plan is None) != (schedule is None):
        raise ValueError(
            "masks alone stay fixed; masks with a plan and a schedule are refreshed: "
            "give both plan and schedule beside masks, or neither"
        )
    check_schedule(schedule)
    check_every(every)
    if plan is None and masks is None:
        plan = "2:4"
    if plan is not None:
        plan = plan_or_rules(plan)
    inner = optax.with_extra_args_support(inner)

    def init(params):
        weights = flatten(params)
        planned = None if plan is None else plan_for_part(weights.by_path, plan)
        progress = None if schedule is None else schedule(jnp.zeros((), jnp.int32))
        first = first_masks(weights.by_path, planned, masks, progress)
        inner_state = masked_init(inner, weights, first)
        return SparseState(
            jnp.zeros((), jnp.int32), weights.unflatten(first), inner_state
        )

    def update(updates, state, params=None, **extra_args):
        weights, paths = flatten_with_keys(require_params(params))
        require_state(state, SparseState)
        mask_tree, inner_state = state.masks, state.inner_state
        entries, planned = flatten_masks(mask_tree), None
        if plan is not None:
            planned = plan_for_masks(weights.by_path, plan, entries)
        kept = match_entries(weights.by_path, entries)
        if planned is not None and schedule is not None:
            progress = jnp.asarray(schedule(state.count), jnp.float32)
            before = schedule(jnp.maximum(state.count - every, 0))
            moved = counts_move(planned, before, progress)
            late = _keep_more(planned, kept, progress)
            due = (state.count % every == 0) & (moved | late)
            prune = partial(_finer_masks, weights.by_path, planned, progress)
            kept, inner_state = update_masks(
                due, prune, kept, inner_state, weights.by_path, paths
            )
            mask_tree = replace_masks(mask_tree, kept)
        elif planned is not None:
            _refuse_denser_masks(planned, kept)
        updates, inner_state = masked_update(
            inner,
            flatten(updates),
            inner_state,
            weights,
            kept,
            mask_gradients=mask_gradients,
            extra_args=extra_args,
        )
        return updates, SparseState(next_count(state.count), mask_tree, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def keep_params_sparse(
    plan: PlanLike | None = None,
    *,
    masks: PyTree | None = None,
    schedule: Schedule | None = None,
    every: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """Keeps pruned weights exactly zero, as the last link of an `optax.chain`.

    It gives the guarantee of `wrap_optimizer`. The links before it see dense gradients
    and, at the first step, dense parameters.

    Args:
      plan: a plan, rules or a pattern, as in `wrap_optimizer`.
      masks: the initial masks, bool or packed.
      schedule: the progress of pruning, as a function of the step.
      every: masks are refreshed only at multiples of this step.

    Returns:
      A gradient transformation with the state `SparseState`.

    Raises:
      ValueError: as `wrap_optimizer`.

    >>> params = {"kernel": jnp.arange(128.0).reshape(16, 8)}
    >>> tx = optax.chain(optax.sgd(0.1), keep_params_sparse("2:4"))
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["kernel"][:4, 0]
    Array([ 0. ,  0. , 14.4, 21.6], dtype=float32)
    """
    return wrap_optimizer(
        optax.identity(),
        plan,
        masks=masks,
        schedule=schedule,
        every=every,
        mask_gradients=False,
    )


def _keep_more(plan: Plan, masks: Masks, progress: Array) -> Bool[Array, ""]:
    """Whether any masks keep more weights than they should at this progress.

    A state may be restored behind a step at which it should have been pruned, where
    the schedule no longer moves.
    """
    more = []
    for group, total, target in counted_groups(plan.sparse):
        allowed = kept_count(total, target, progress).astype(jnp.uint32)
        more.append(_kept(group, masks) > allowed * jnp.uint32(_units(group, total)))
    return jnp.any(jnp.stack(more)) if more else jnp.zeros((), bool)


def _refuse_denser_masks(plan: Plan, masks: Masks) -> None:
    """Raises if masks keep more than the plan: a restored state of another plan.

    Traced masks cannot be read; `check_sparsity` finds those.
    """
    for group, total, target in counted_groups(plan.sparse):
        if any(isinstance(masks[leaf.path], Tracer) for leaf in group):
            return
        kept, allowed = int(_kept(group, masks)), target * _units(group, total)
        if kept > allowed:
            leaf = group[0]
            raise ValueError(
                f"the state's mask of leaf {leaf.path!r} of shape {leaf.shape} keeps "
                f"{kept} weights, and {leaf.decision} keeps {allowed}: it was made "
                "with another plan. Give that plan, give a schedule by which the plan "
                "prunes further, or begin anew with tx.init(params)"
            )


def _units(group: Sequence[LeafPlan], total: int) -> int:
    """How many weights there are for each of `total` places to choose from."""
    return sum(math.prod(leaf.shape or ()) for leaf in group) // total


def _kept(group: Sequence[LeafPlan], masks: Masks) -> UInt32[Array, ""]:
    """How many weights the masks of some leaves keep."""
    counts = [_count_bits(masks[leaf.path]) for leaf in group]
    return sum(counts[1:], counts[0])


@jax.jit
def _count_bits(packed: UInt8[Array, "..."]) -> UInt32[Array, ""]:
    return jnp.sum(lax.population_count(packed), dtype=jnp.uint32)


def _finer_masks(
    weights: Mapping[str, Any], plan: Plan, progress: Float[Array, ""], masks: Masks
) -> dict[str, Array]:
    """The masks at this progress, each within the mask before."""
    return search_masks(
        weights, plan.sparse, progress=progress, within=masks, packed=True
    )
