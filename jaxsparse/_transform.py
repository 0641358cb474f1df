"""Masks inside any Optax optimizer: updates that land on exact zeros."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.tree_util import tree_map_with_path
from jaxtyping import Array, Float32, Int, PyTree

from jaxsparse._masks import (
    as_bool,
    best_leaf_mask,
    mask_leaf,
    mask_params,
    match_masks,
)
from jaxsparse._packing import pack_mask, packed_axis
from jaxsparse._paths import flatten, map_named, path_name, shapes_of
from jaxsparse._pattern import NM
from jaxsparse._plan import Plan, PlanLike, plan_for
from jaxsparse._rule import as_rules
from jaxsparse._schedule import Schedule
from jaxsparse._state import SparseState


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
        `m - round(progress * (m - n))` weights in each group. Each mask lies within the
        one before. With both plan and masks the masks start and the plan refreshes.
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
    if every < 1:
        raise ValueError(f"every counts steps between looks, at least 1, got {every}")
    if plan is None and masks is None:
        plan = "2:4"
    if plan is not None and not isinstance(plan, Plan):
        plan = as_rules(plan)  # what is misspelled is refused here, not in `init`
    inner = optax.with_extra_args_support(inner)

    def init(params):
        start = _initial_masks(params, plan, masks, schedule)
        inner_state = inner.init(mask_params(params, start))
        return SparseState(jnp.zeros((), jnp.int32), start, inner_state)

    def update(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError(
                "masked updates depend on the parameters: call "
                "tx.update(updates, state, params)"
            )
        kept = state.masks
        if plan is not None and schedule is not None:
            kept = _refreshed_masks(state, params, plan, schedule, every)
        matched = match_masks(params, kept)
        if mask_gradients:
            updates = map_named(
                lambda path, gradient: mask_leaf(gradient, matched[path]), updates
            )
        updates, inner_state = inner.update(
            updates, state.inner_state, mask_params(params, kept), **extra_args
        )
        weights, _ = flatten(params)
        updates = map_named(
            lambda path, step: _land_on_zero(step, weights[path], matched[path]),
            updates,
        )
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, SparseState(count, kept, inner_state)

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


def _initial_masks(
    params: PyTree,
    plan: PlanLike | None,
    masks: PyTree | None,
    schedule: Schedule | None,
) -> PyTree:
    """Packed masks for `params`, which may be a part of the tree, or a placeholder."""
    planned = None if plan is None else plan_for(params, plan, part=True)
    given = None if masks is None else match_masks(params, masks, part=True)

    def mask_of(path: str, weight: Any):
        leaf = None if planned is None else planned.by_path.get(path)
        axis = None if leaf is None else leaf.axis
        if given is not None:
            mask = given[path]
            if planned is not None and (mask is None) != (axis is None):
                raise ValueError(
                    f"leaf {path!r} has a mask and no pattern in the plan, or the "
                    "reverse: to refresh masks, give those of the plan's leaves"
                )
            return None if mask is None else _packed_copy(path, mask, weight, axis)
        if leaf is None or leaf.pattern is None:
            return None
        n = None
        if schedule is not None:
            n = _kept(leaf.pattern, schedule(jnp.zeros((), jnp.int32)))
        return best_leaf_mask(weight, leaf, n=n, packed=True)

    start = map_named(mask_of, params)
    arrays = shapes_of(params)
    if arrays and not jax.tree.leaves(start):
        raise ValueError(
            f"nothing prunable: no mask and no pattern for any of the leaves {arrays}"
        )
    return start


def _refreshed_masks(
    state: SparseState,
    params: PyTree,
    plan: PlanLike,
    schedule: Schedule,
    every: int,
) -> PyTree:
    """The masks for this step: new ones where a group's number of weights moved."""
    planned: Plan = plan_for(params, plan, part=True)
    progress = schedule(state.count)
    before = schedule(jnp.maximum(state.count - every, 0))
    patterns = {leaf.pattern for leaf in planned.sparse if leaf.pattern is not None}
    moved = [_kept(nm, progress) != _kept(nm, before) for nm in patterns]
    due = (state.count % every == 0) & jnp.any(jnp.stack(moved))
    weights, _ = flatten(params)

    def refresh(masks):
        def refreshed(path, mask):
            name = path_name(path)
            leaf = planned[name]
            assert leaf.pattern is not None
            n = _kept(leaf.pattern, progress)
            return best_leaf_mask(weights[name], leaf, n=n, within=mask, packed=True)

        return tree_map_with_path(refreshed, masks)

    return lax.cond(due, refresh, lambda masks: masks, state.masks)


def _kept(pattern: NM, progress: Float32[Array, ""]) -> Int[Array, ""]:
    """How many weights a group keeps at this progress."""
    closed = jnp.round(progress * (pattern.m - pattern.n))
    return pattern.m - closed.astype(jnp.int32)


def _packed_copy(path: str, mask: Any, weight: Any, axis: int | None) -> Array:
    """A caller's mask packed along `axis`; by default as it was, or along the last."""
    if weight.ndim == 0:
        raise ValueError(f"leaf {path!r} is a scalar: its mask cannot be packed")
    if axis is None:
        packed = mask.dtype != jnp.bool_
        axis = packed_axis(mask.shape, weight.shape) if packed else weight.ndim - 1
    assert axis is not None
    # Always packed anew: a donated step must not delete the caller's arrays.
    return pack_mask(as_bool(mask, weight), axis)


def _land_on_zero(step: Array, weight: Array, mask: Array | None) -> Array:
    """The update where the weight is kept, elsewhere what takes it to zero."""
    if mask is None:
        return step
    # A narrower update could not hold minus the weight exactly.
    dtype = jnp.promote_types(step.dtype, weight.dtype)
    kept = as_bool(mask, weight)
    return jnp.where(kept, step.astype(dtype), -weight.astype(dtype))
