"""Masks inside any Optax optimizer: pruned weights stay exactly zero."""

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


def _moved(plan: Plan, before: Array, progress: Array) -> Bool[Array, ""]:
    """Whether any pattern keeps another number of weights than before."""
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
