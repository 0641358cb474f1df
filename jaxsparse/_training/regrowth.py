"""Dynamic sparse training: some kept weights are dropped, as many pruned ones regrow.

The network is sparse from the first step to the last, and its masks move: every few
steps the smallest kept weights give way to pruned ones. SET chooses those at random,
RigL by the size of their gradients.
"""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from jaxsparse._masks import match_entries
from jaxsparse._patterns import (
    NM,
    RankKeys,
    Unstructured,
    rank_by_magnitude,
    rank_by_value,
)
from jaxsparse._plans import LeafPlan, PlanLike, plan_for_part, plan_or_rules
from jaxsparse._training.first_masks import first_masks
from jaxsparse._training.masked_optimizer import (
    flip_rate,
    masked_init,
    masked_update,
    next_count,
    plan_for_masks,
    require_params,
    require_state,
    update_masks,
)
from jaxsparse._training.moved_mask import moved_mask
from jaxsparse._training.schedule import check_every
from jaxsparse._training.state import RegrowthState
from jaxsparse._trees import (
    Leaves,
    PyTree,
    flatten,
    flatten_masks,
    flatten_with_keys,
    replace_masks,
    require_values,
)


#: Returns the fraction of the kept weights that is dropped at a step.
DropFraction = Callable[[Int[Array, ""]], ArrayLike]

#: Ranks the weights of a leaf for regrowth, by the step, the path and the gradient.
RankGrowth = Callable[[Int[Array, ""], str, Array], RankKeys]


def regrow_by_gradient(
    inner: optax.GradientTransformation,
    plan: PlanLike = "2:4",
    *,
    masks: PyTree | None = None,
    fraction: DropFraction,
    every: int = 100,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer in RigL, which regrows weights with the largest gradients.

    Evci et al., "Rigging the Lottery: Making All Tickets Winners" (2020,
    arXiv:1911.11134). Every `every` steps each leaf drops the smallest of its kept
    weights and regrows as many of the others, those with the largest gradients, from
    zero. A weight that was just dropped may be regrown at once; it then keeps its
    value. With an n:m pattern each group regrows as many weights as it drops. At every
    step `params + updates` is exactly zero at every masked position, as in
    `wrap_optimizer`. The inner optimizer's moments are set to zero where weights are
    dropped or regrown. `optax.rprop` is not supported: its initial state is not zero,
    so regrown weights would never move. Compile the step with `jax.jit`: an eager call
    traces the search again each time.

    Args:
      inner: any optimizer.
      plan: a plan, rules or a pattern. Leaves must be pruned to `NM` or `Unstructured`.
      masks: the initial masks, bool or packed, for example random ones made with
        `random_scores`. The default is the best masks for the parameters given to
        `init`. They should keep as many weights as the plan does; after the first
        change of masks they do.
      fraction: the fraction of the kept weights to drop, as a function of the step. The
        paper uses `optax.cosine_decay_schedule(0.3, steps)`, which ends at 0.
      every: masks change at multiples of this step, except step 0.

    Returns:
      A gradient transformation with the state `RegrowthState`. `update` needs the
      parameters, and unmasked gradients of the sparse network.

    Raises:
      ValueError: `every < 1`; in `init`, another pattern, and whatever
        `wrap_optimizer` raises.
      TypeError: in `init`, a pruned leaf has an integer dtype.

    >>> params = {"kernel": jnp.arange(128.0).reshape(16, 8)}
    >>> fraction = optax.cosine_decay_schedule(0.5, 1000)
    >>> tx = regrow_by_gradient(optax.sgd(0.1), "2:4", fraction=fraction, every=1)
    >>> state, gradients = tx.init(params), {"kernel": jnp.ones((16, 8))}
    >>> for _ in range(2):
    ...     updates, state = tx.update(gradients, state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> print(params["kernel"][:4, 0], state.flip_rate)
    [-0.1 -0.1  0.   0. ] 0.5
    """

    def rank_growth(_count, _path, gradient):
        return rank_by_magnitude(gradient)

    return _regrow(inner, plan, masks, fraction, every, rank_growth)


def regrow_at_random(
    inner: optax.GradientTransformation,
    plan: PlanLike = "2:4",
    *,
    key: jax.Array,
    masks: PyTree | None = None,
    fraction: DropFraction,
    every: int = 100,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer in SET, which regrows weights at random.

    Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse
    connectivity inspired by network science" (2018, arXiv:1707.04780). Like
    `regrow_by_gradient`, except that the weights to regrow are chosen at random.

    Args:
      inner: any optimizer.
      plan: a plan, rules or a pattern. Leaves must be pruned to `NM` or `Unstructured`.
      key: the random key. The choice at a step depends only on the key and the step, so
        a restored run continues as the original would have.
      masks: the initial masks, as in `regrow_by_gradient`.
      fraction: the fraction of the kept weights to drop, as a function of the step. The
        paper uses 0.3 at every step.
      every: masks change at multiples of this step, except step 0.

    Returns:
      A gradient transformation with the state `RegrowthState`.

    Raises:
      ValueError: as `regrow_by_gradient`.

    >>> tx = regrow_at_random(
    ...     optax.sgd(0.1), "2:4", key=jax.random.key(0), fraction=lambda step: 0.3
    ... )
    """

    def rank_growth(count, path, gradient):
        number = zlib.crc32(path.encode())  # the same in any part of the tree
        leaf_key = jax.random.fold_in(jax.random.fold_in(key, count), number)
        return rank_by_value(jax.random.uniform(leaf_key, gradient.shape))

    return _regrow(inner, plan, masks, fraction, every, rank_growth)


def _regrow(
    inner: optax.GradientTransformation,
    plan: PlanLike,
    masks: PyTree | None,
    fraction: DropFraction,
    every: int,
    rank_growth: RankGrowth,
) -> optax.GradientTransformationExtraArgs:
    check_every(every)
    plan = plan_or_rules(plan)
    inner = optax.with_extra_args_support(inner)

    def init(params):
        weights = flatten(params)
        planned = plan_for_part(weights.by_path, plan)
        for leaf in planned.sparse:
            _check_regrowable(leaf, weights.by_path[leaf.path])
        first = first_masks(weights.by_path, planned, masks)
        inner_state = masked_init(inner, weights, first)
        count, no_flips = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
        return RegrowthState(count, weights.unflatten(first), inner_state, no_flips)

    def update(updates, state, params=None, **extra_args):
        weights, paths = flatten_with_keys(require_params(params))
        require_state(state, RegrowthState)
        entries = flatten_masks(state.masks)
        planned = plan_for_masks(weights.by_path, plan, entries)
        before = match_entries(weights.by_path, entries)
        dropped = jnp.asarray(fraction(state.count), jnp.float32)
        due = (state.count > 0) & (state.count % every == 0) & (dropped > 0)
        gradients = flatten(updates)

        def move(masks):
            return {
                leaf.path: moved_mask(
                    leaf,
                    weights.by_path[leaf.path],
                    masks[leaf.path],
                    rank_growth(state.count, leaf.path, _gradient(gradients, leaf)),
                    dropped,
                )
                for leaf in planned.sparse
            }

        kept, inner_state = update_masks(
            due, move, before, state.inner_state, weights.by_path, paths
        )
        flips = lax.cond(
            due,
            lambda: flip_rate(before, kept, weights.by_path),
            lambda: state.flip_rate,
        )
        updates, inner_state = masked_update(
            inner,
            gradients,
            inner_state,
            weights,
            kept,
            mask_gradients=True,
            extra_args=extra_args,
        )
        masks = replace_masks(state.masks, kept)
        state = RegrowthState(next_count(state.count), masks, inner_state, flips)
        return updates, state

    return optax.GradientTransformationExtraArgs(init, update)


def _gradient(gradients: Leaves, leaf: LeafPlan) -> Array:
    gradient = gradients.by_path.get(leaf.path)
    if gradient is None:
        raise ValueError(
            f"leaf {leaf.path!r} of shape {leaf.shape} is pruned and has no gradient: "
            "keep it dense by a rule, or pass a gradient of zeros to freeze it"
        )
    return gradient


def _check_regrowable(leaf: LeafPlan, weight: Any) -> None:
    require_values(leaf.path, weight)
    dtype = jnp.asarray(weight).dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"leaf {leaf.path!r} of shape {leaf.shape} has dtype {dtype}: only floats "
            "can be trained; keep it dense by a rule"
        )
    match leaf.pattern:
        case NM(transposable=False) | Unstructured(across_leaves=False):
            return
    raise ValueError(
        f"leaf {leaf.path!r} of shape {leaf.shape} is planned {leaf.decision}: weights "
        "can regrow in n:m patterns, and in Unstructured ones with one sparsity per "
        "leaf; give it one of these by a rule, or keep it dense"
    )
