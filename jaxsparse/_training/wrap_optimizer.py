"""Masks inside any Optax optimizer: updates that land on exact zeros."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from jaxsparse._masks import (
    kept_count,
    match_masks,
    search_masks,
)
from jaxsparse._plans import (
    Plan,
    PlanLike,
    counted_groups,
    plan_for_leaves,
    plan_or_rules,
)
from jaxsparse._training.first_masks import first_masks
from jaxsparse._training.masked_optimizer import (
    Masks,
    masked_init,
    masked_update,
    next_count,
    plan_for_masks,
    require_params,
    require_state,
    update_masks,
)
from jaxsparse._training.schedule import Schedule, check_every
from jaxsparse._training.state import SparseState
from jaxsparse._trees import flatten, flatten_with_keys, replace_masks


def wrap_optimizer(
    inner: optax.GradientTransformation,
    plan: PlanLike | None = None,
    *,
    masks: PyTree | None = None,
    schedule: Schedule | None = None,
    every: int = 1,
    mask_gradients: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that every update lands on exact zeros.

    `params + updates` is exactly zero at every masked place, for finite parameters
    whatever came before: the first step from dense parameters prunes them. The inner
    optimizer sees masked parameters and masked gradients, so that weight decay and
    iterate averages are the sparse network's. The guarantee holds from the first
    update that is applied, and needs this wrapper to be the last link that touches
    updates. Gradient clipping *outside* counts the gradients of pruned weights too.

    The recipe is ASP's (Mishra et al. 2021, arXiv:2104.08378): prune a trained network
    once, then train it on under fixed masks with the schedule that it was trained with.

    Restoring a checkpoint: restore this state with its masks, or call `tx.init` on the
    restored parameters. Parameters that are loaded after `tx.init` ran on random ones
    would train under the masks of the random weights: `check_sparsity` finds that out.

    Args:
      inner: any optimizer.
      plan: a plan, rules or a pattern; `"2:4"` if neither plan nor masks are given.
        The masks are made in `init` from the parameters given there.
      masks: start with these masks, bool or packed, instead. They are copied.
      schedule: prune when its progress moves, keeping
        `m - round(progress * (m - n))` weights in each group, or of an unstructured
        pattern all but `progress` times its sparsity. Each mask lies within the one
        before; the inner optimizer's moments of the weights that it closes are set to
        zero. With both plan and masks the masks start and the plan refreshes.
      every: look at the schedule on steps that this divides.
      mask_gradients: whether the inner optimizer sees zeros for the gradients of
        pruned weights.

    Returns:
      A gradient transformation with the state `SparseState`. Extra arguments of
      `update` reach the inner optimizer. `update` needs the parameters.

    Raises:
      ValueError: plan and masks without a schedule, a schedule with masks alone,
        `every < 1`; in `init`, what does not fit the parameters, or nothing prunable.

    >>> params = {"kernel": jnp.arange(128.0).reshape(16, 8)}
    >>> tx = wrap_optimizer(optax.sgd(0.1), "2:4")
    >>> state = tx.init(params)
    >>> updates, state = tx.update(params, state, params)
    >>> optax.apply_updates(params, updates)["kernel"][:4, 0]
    Array([ 0. ,  0. , 14.4, 21.6], dtype=float32)
    """
    if masks is not None and (plan is None) != (schedule is None):
        raise ValueError(
            "masks alone stay as they are; masks with a plan *and* a schedule start "
            "and are refreshed: give both of the two, or neither"
        )
    check_every(every)
    if plan is None and masks is None:
        plan = "2:4"
    if plan is not None:
        plan = plan_or_rules(plan)
    inner = optax.with_extra_args_support(inner)

    def init(params):
        weights = flatten(params)
        planned = (
            None if plan is None else plan_for_leaves(weights.by_path, plan, part=True)
        )
        progress = None if schedule is None else schedule(jnp.zeros((), jnp.int32))
        first = first_masks(weights.by_path, planned, masks, progress)
        inner_state = masked_init(inner, weights, first)
        return SparseState(
            jnp.zeros((), jnp.int32), weights.unflatten(first), inner_state
        )

    def update(updates, state, params=None, **extra_args):
        weights, paths = flatten_with_keys(require_params(params))
        require_state(state, SparseState)
        kept = match_masks(weights.by_path, state.masks)
        mask_tree, inner_state = state.masks, state.inner_state
        planned = None if plan is None else plan_for_masks(weights.by_path, plan, kept)
        if planned is not None and schedule is not None:
            progress = schedule(state.count)
            before = schedule(jnp.maximum(state.count - every, 0))
            due = (state.count % every == 0) & _moved(planned, before, progress)
            prune = partial(_finer_masks, weights.by_path, planned, progress)
            kept, inner_state = update_masks(
                due, prune, kept, inner_state, weights.by_path, paths
            )
            mask_tree = replace_masks(mask_tree, kept)
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
    """The guarantee of `wrap_optimizer` as the last link of an `optax.chain`.

    The links before it see dense gradients and, at the first step, dense parameters.

    Args:
      plan: as in `wrap_optimizer`, like the other arguments.
      masks: start with these masks.
      schedule: prune when its progress moves.
      every: look at the schedule on steps that this divides.

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


def _moved(plan: Plan, before: Array, progress: Array) -> Bool[Array, ""]:
    """Whether some pattern keeps another number of weights than before."""
    counts = {(total, kept) for _, total, kept in counted_groups(plan.sparse)}
    moved = [
        kept_count(total, kept, progress) != kept_count(total, kept, before)
        for total, kept in counts
    ]
    return jnp.any(jnp.stack(moved)) if moved else jnp.zeros((), bool)


def _finer_masks(
    weights: Mapping[str, Any], plan: Plan, progress: Float[Array, ""], masks: Masks
) -> dict[str, Array]:
    """The masks at this progress, each within the mask before."""
    return search_masks(
        weights, plan.sparse, progress=progress, within=masks, packed=True
    )
