"""Training through masks: the loss sees the sparse network, gradients are dense.

Under a straight-through estimator the parameters stay dense, so a mask recomputed from
them may keep other weights than before.
"""

from collections.abc import Mapping
from functools import partial

import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float32

from jaxsparse._masks import (
    mask_straight_through,
    match_entries,
    match_masks,
    search_masks,
)
from jaxsparse._patterns import as_bool
from jaxsparse._plans import (
    Plan,
    PlanLike,
    is_plan_like,
    plan_for,
    plan_for_part,
    plan_or_rules,
)
from jaxsparse._sharding import reshard_to
from jaxsparse._training.first_masks import first_masks
from jaxsparse._training.masked_optimizer import (
    Masks,
    counts_move,
    flip_rate,
    next_count,
    plan_for_masks,
    require_params,
    require_state,
)
from jaxsparse._training.schedule import Schedule, check_every, check_schedule
from jaxsparse._training.state import StraightThroughState
from jaxsparse._trees import (
    PyTree,
    flatten,
    flatten_masks,
    is_array,
    map_named,
    replace_masks,
)


def straight_through(params: PyTree, plan: PlanLike | PyTree = "2:4") -> PyTree:
    """Returns masked parameters, with the gradient of dense ones.

    The straight-through estimator of Bengio et al., "Estimating or Propagating
    Gradients Through Stochastic Neurons" (2013, arXiv:1308.3432), applied to masks: the
    derivative of masking is taken to be the identity. `params` stay dense while they
    train; deploy `mask_params(params, create_masks(params, plan))`.

    Args:
      params: a tree of arrays.
      plan: a plan, rules or a pattern; the masks are then computed from `params` at
        each call. Or a tree of masks, bool or packed, such as `get_masks` of the state
        of `add_sr_ste_decay`.

    Returns:
      A tree like `params` with exact zeros at masked positions.

    Raises:
      ValueError, TypeError: as `create_masks` and `mask_params`.

    >>> import jax
    >>> params = {"kernel": jnp.arange(128.0).reshape(16, 8)}
    >>> loss = lambda params: jnp.sum(straight_through(params, "2:4")["kernel"] ** 2)
    >>> jax.grad(loss)(params)["kernel"][:4, 0]
    Array([ 0.,  0., 32., 48.], dtype=float32)
    >>> loss = lambda params: jnp.sum(straight_through(params, "2:4")["kernel"])
    >>> jax.grad(loss)(params)["kernel"][:4, 0]
    Array([1., 1., 1., 1.], dtype=float32)
    """
    leaves = flatten(params)
    if is_plan_like(plan):
        planned = plan_for(params, plan)
        values = {
            path: lax.stop_gradient(leaf) if is_array(leaf) else leaf
            for path, leaf in leaves.by_path.items()
        }
        masks = search_masks(values, planned.sparse)
    else:
        masks = match_masks(leaves.by_path, plan)
    return leaves.unflatten(
        {
            path: mask_straight_through(leaf, masks.get(path))
            for path, leaf in leaves.by_path.items()
        }
    )


def add_sr_ste_decay(
    plan: PlanLike = "2:4",
    *,
    decay: ArrayLike = 2e-4,
    schedule: Schedule | None = None,
    every: int = 1,
) -> optax.GradientTransformation:
    """Adds `decay * w` to the gradients of pruned weights.

    SR-STE, the sparse-refined straight-through estimator of Zhou et al., "Learning N:M
    Fine-grained Structured Sparse Neural Networks From Scratch" (2021,
    arXiv:2102.04010, equation 9). Pruned weights shrink unless their gradients keep
    them large, so masks settle. Put it before the optimizer, and use `straight_through`
    with the same plan in the loss::

        tx = optax.chain(add_sr_ste_decay(plan), optax.sgd(0.1, momentum=0.9))

    Args:
      plan: a plan, rules or a pattern.
      decay: the strength of the decay, not negative; may be traced.
      schedule: the progress from 0, at which masks keep every weight, to 1, the
        pattern, as a function of the step. It may rise and fall: the parameters are
        dense, so masks can open again. `one_shot_schedule(0, end=5_000)` makes the
        steps from 5,000 on dense.
      every: masks are recomputed at multiples of this step, and where the schedule
        keeps another number of weights. If it is above 1 or there is a schedule, give
        the loss the masks of the state, `straight_through(params, get_masks(state))`:
        the decay uses the same masks, and recomputed ones take effect at the next step.

    Returns:
      A gradient transformation with the state `StraightThroughState`, which has the
      masks and the fraction of the masked leaves' weights whose mask changed last.
      `update` needs the parameters.

    Raises:
      ValueError: a decay that is negative or not finite, or `every < 1`; in `init`, as
        `create_masks`.
      TypeError: a schedule that is not a function.

    >>> import jax
    >>> params = {"kernel": jnp.arange(128.0).reshape(16, 8)}
    >>> tx = add_sr_ste_decay("2:4", decay=0.5)
    >>> gradients = jax.tree.map(jnp.zeros_like, params)
    >>> gradients, state = tx.update(gradients, tx.init(params), params)
    >>> gradients["kernel"][:4, 0]
    Array([0., 4., 0., 0.], dtype=float32)
    """
    if isinstance(decay, int | float) and not 0 <= decay < float("inf"):
        raise ValueError(f"decay must be finite and not negative, got {decay}")
    check_schedule(schedule)
    check_every(every)
    plan = plan_or_rules(plan)
    renew_first = every == 1 and schedule is None  # else the loss has the state's masks

    def init(params):
        weights = flatten(params)
        planned = plan_for_part(weights.by_path, plan)
        progress = None if schedule is None else schedule(jnp.zeros((), jnp.int32))
        first = first_masks(weights.by_path, planned, None, progress)
        masks = weights.unflatten(first)
        return StraightThroughState(
            jnp.zeros((), jnp.int32), masks, jnp.zeros((), jnp.float32)
        )

    def update(updates, state, params=None):
        weights = flatten(require_params(params)).by_path
        require_state(state, StraightThroughState)
        entries = flatten_masks(state.masks)
        planned = plan_for_masks(weights, plan, entries)
        before = match_entries(weights, entries)
        due, progress = state.count % every == 0, None
        if schedule is not None:  # of the next step, which has the renewed masks
            progress = jnp.asarray(schedule(state.count + 1), jnp.float32)
            due |= counts_move(planned, schedule(state.count), progress)
        masks, flips = lax.cond(
            due,
            partial(_renew_masks, weights, planned, progress),
            lambda masks, flip_rate: (masks, flip_rate),
            {leaf.path: before[leaf.path] for leaf in planned.sparse},
            state.flip_rate,
        )
        # The masks that the loss saw: those of these parameters, or the state's.
        used = masks if renew_first else before

        def decayed(path: str, gradient: Array) -> Array:
            weight = weights[path]
            if used.get(path) is None:
                return gradient
            pull = jnp.asarray(decay, gradient.dtype) * weight.astype(gradient.dtype)
            return jnp.where(as_bool(used[path], weight), gradient, gradient + pull)

        state = StraightThroughState(
            next_count(state.count), replace_masks(state.masks, masks), flips
        )
        return map_named(decayed, updates), state

    return optax.GradientTransformation(init, update)


def _renew_masks(
    weights: Mapping[str, Array],
    plan: Plan,
    progress: Float32[Array, ""] | None,
    masks: Masks,
    _: Array,
) -> tuple[dict[str, Array], Float32[Array, ""]]:
    """The masks of these weights, and the fraction of them at which they changed."""
    best = search_masks(weights, plan.sparse, progress=progress, packed=True)
    renewed = {path: reshard_to(best[path], mask) for path, mask in masks.items()}
    return renewed, flip_rate(masks, renewed, weights)
