"""Dynamic sparse training: some weights are dropped, as many grow elsewhere.

The network is sparse from the first step to the last and the masks move: every so many
steps the smallest of the weights that are kept give way to pruned ones. SET and RigL
differ in how these are chosen: at random, or by the gradients that they would have.
"""

import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxsparse._masks import (
    kept_count,
    mask_params,
)
from jaxsparse._patterns import (
    NM,
    RankKeys,
    Unstructured,
    as_bool,
    best_nm_mask,
    best_unstructured_masks,
    pack_mask,
    rank_above,
    rank_by_magnitude,
    rank_by_value,
    rank_within,
)
from jaxsparse._plans import (
    LeafPlan,
    PlanLike,
    plan_for,
    plan_or_rules,
)
from jaxsparse._training.first_masks import initial_masks
from jaxsparse._training.masked_optimizer import (
    flip_rate,
    masked_update,
    next_count,
    plan_for_masks,
    require_params,
    require_state,
    update_masks,
)
from jaxsparse._training.schedule import check_every
from jaxsparse._training.state import RegrowthState
from jaxsparse._trees import flatten, flatten_masks, with_masks


#: A step in, the fraction of the kept weights that is to be dropped out.
DropFraction = Callable[[Int[Array, ""]], ArrayLike]


def regrow_by_gradient(
    inner: optax.GradientTransformation,
    plan: PlanLike = "2:4",
    *,
    masks: PyTree | None = None,
    fraction: DropFraction,
    every: int = 100,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer in RigL: grow where the gradient is largest.

    Evci et al., "Rigging the Lottery: Making All Tickets Winners" (2020,
    arXiv:1911.11134). Every `every` steps, in each leaf, the smallest kept weights are
    dropped, and of all others those with the largest gradients are kept instead,
    beginning at zero; a weight that was dropped may come back at once, as it was. With
    an n:m pattern each group grows as many as it dropped. Between, and at these steps
    too, `params + updates` is exactly zero at every masked place, as in
    `wrap_optimizer`. What the inner optimizer keeps for each weight is set to zero
    where weights are closed or opened; `optax.rprop`, whose fresh state is not zero,
    would never move them. Compile the step: uncompiled, each call traces it anew.

    Args:
      inner: any optimizer.
      plan: a plan, rules or a pattern; leaves are pruned `NM` or `Unstructured`.
      masks: start with these masks, bool or packed, instead of the best ones for the
        parameters given to `init`: such as random ones, from `random_scores`. They
        should keep what the plan keeps; the first change makes them.
      fraction: the fraction of the kept weights that is dropped at a step; the paper's
        is `optax.cosine_decay_schedule(0.3, steps)`, which ends in 0.
      every: change masks at steps that this divides, the first excepted.

    Returns:
      A gradient transformation with the state `RegrowthState`. `update` needs the
      parameters, and gradients of the sparse network that nothing has masked.

    Raises:
      ValueError: `every < 1`; in `init`, as `wrap_optimizer`, or another pattern.
      TypeError: in `init`, a pruned leaf of integers.

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
    grow = lambda _count, _path, gradient: rank_by_magnitude(gradient)
    return _regrow(inner, plan, masks, fraction, every, grow)


def regrow_at_random(
    inner: optax.GradientTransformation,
    plan: PlanLike = "2:4",
    *,
    key: jax.Array,
    masks: PyTree | None = None,
    fraction: DropFraction,
    every: int = 100,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer in SET: grow at random.

    Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse
    connectivity inspired by network science" (2018, arXiv:1707.04780). As
    `regrow_by_gradient`, but for how the weights that grow are chosen.

    Args:
      inner: any optimizer.
      plan: a plan, rules or a pattern; leaves are pruned `NM` or `Unstructured`.
      key: the random key. A step's choice depends on it and on the number of the step
        alone, so that a restored run goes on as it would have.
      masks: start with these masks.
      fraction: the fraction of the kept weights that is dropped at a step; the paper's
        is 0.3 throughout.
      every: change masks at steps that this divides, the first excepted.

    Returns:
      A gradient transformation with the state `RegrowthState`.

    Raises:
      ValueError: as `regrow_by_gradient`.

    >>> tx = regrow_at_random(
    ...     optax.sgd(0.1), "2:4", key=jax.random.key(0), fraction=lambda step: 0.3
    ... )
    """

    def grow(count, path, gradient):
        place = zlib.crc32(path.encode())  # the same in any part of the tree
        leaf_key = jax.random.fold_in(jax.random.fold_in(key, count), place)
        return rank_by_value(jax.random.uniform(leaf_key, gradient.shape))

    return _regrow(inner, plan, masks, fraction, every, grow)


def _regrow(inner, plan, masks, fraction: DropFraction, every: int, grow):
    """`grow(count, path, gradient)` ranks the weights of a leaf."""
    check_every(every)
    plan = plan_or_rules(plan)
    inner = optax.with_extra_args_support(inner)

    def init(params):
        weights, _ = flatten(params)
        for leaf in plan_for(params, plan, part=True).sparse:
            _check_regrowable(leaf, weights[leaf.path])
        start = initial_masks(params, plan, masks)
        inner_state = inner.init(mask_params(params, start))
        no_flips = jnp.zeros((), jnp.float32)
        return RegrowthState(jnp.zeros((), jnp.int32), start, inner_state, no_flips)

    def update(updates, state, params=None, **extra_args):
        params = require_params(params)
        require_state(state, RegrowthState)
        planned = plan_for_masks(params, plan, state.masks)
        (weights, _), (gradients, _) = flatten(params), flatten(updates)
        dropped = jnp.asarray(fraction(state.count), jnp.float32)

        def renew(masks):
            old, found = flatten_masks(masks), {}
            for leaf in planned.sparse:
                gradient = gradients.get(leaf.path)
                if gradient is None:
                    raise ValueError(
                        f"leaf {leaf.path!r} of shape {leaf.shape} is pruned and has "
                        "no gradient: keep it dense by a rule, or freeze it by zeros"
                    )
                ranked = grow(state.count, leaf.path, gradient)
                kept = as_bool(old[leaf.path], weights[leaf.path])
                mask = _regrown(weights[leaf.path], kept, ranked, leaf, dropped)
                assert leaf.axis is not None
                found[leaf.path] = pack_mask(mask, leaf.axis)
            return with_masks(masks, found)

        due = (state.count > 0) & (state.count % every == 0) & (dropped > 0)
        kept, inner_state = update_masks(
            due, renew, state.masks, state.inner_state, params
        )
        flips = lax.cond(
            due,
            lambda: flip_rate(state.masks, kept, params),
            lambda: state.flip_rate,
        )
        updates, inner_state = masked_update(
            inner,
            updates,
            inner_state,
            params,
            kept,
            mask_gradients=True,
            extra_args=extra_args,
        )
        return updates, RegrowthState(next_count(state.count), kept, inner_state, flips)

    return optax.GradientTransformationExtraArgs(init, update)


def _regrown(
    weight: Array,
    kept: Bool[Array, "..."],
    growth: RankKeys,
    leaf: LeafPlan,
    dropped: Float[Array, ""],
) -> Bool[Array, "..."]:
    """The mask of a leaf after some of its kept weights gave way to others."""
    total, n = leaf.counts
    everything = n * (weight.size // total)
    (survivors,) = best_unstructured_masks(
        [rank_within(rank_by_magnitude(weight), kept)],
        kept_count(everything, 0, dropped),
    )
    ranked = rank_above(growth, survivors & kept)
    if isinstance(leaf.pattern, NM):
        assert leaf.axis is not None
        return best_nm_mask(ranked, n, total, leaf.axis)
    (mask,) = best_unstructured_masks([ranked], n)
    return mask


def _check_regrowable(leaf: LeafPlan, weight: ArrayLike) -> None:
    dtype = jnp.asarray(weight).dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"leaf {leaf.path!r} of shape {leaf.shape} has dtype {dtype}: only floats "
            "are trained; keep it dense by a rule"
        )
    match leaf.pattern:
        case NM(transposable=False) | Unstructured(across_leaves=False):
            return
    raise ValueError(
        f"leaf {leaf.path!r} of shape {leaf.shape} is planned {leaf.decision}: weights "
        "grow again in n:m patterns and in Unstructured ones with a sparsity a leaf; "
        "give it one of these, or keep it dense, by a rule"
    )
