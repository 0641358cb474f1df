"""What all masked optimizers share: changing masks, and updates that land on zero."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float32, PyTree

from jaxsparse._masks import mask_leaf, mask_params, match_masks
from jaxsparse._patterns import (
    as_bool,
    packed_axis,
    packed_shape,
)
from jaxsparse._plans import Plan, PlanLike, plan_for
from jaxsparse._sharding import reshard_to
from jaxsparse._training.inner_state import reset_changed
from jaxsparse._trees import flatten, flatten_masks, map_named


def masked_update(
    inner: optax.GradientTransformationExtraArgs,
    updates: PyTree,
    inner_state: optax.OptState,
    params: PyTree,
    masks: PyTree,
    *,
    mask_gradients: bool,
    extra_args: Mapping[str, Any],
) -> tuple[PyTree, optax.OptState]:
    """One update of the inner optimizer, which takes every masked weight to zero."""
    matched = match_masks(params, masks)
    if mask_gradients:
        updates = map_named(lambda path, g: mask_leaf(g, matched[path]), updates)
    updates, inner_state = inner.update(
        updates, inner_state, mask_params(params, masks), **extra_args
    )
    weights, _ = flatten(params)
    updates = map_named(
        lambda path, step: _step_to_zero(step, weights[path], matched[path]), updates
    )
    return updates, inner_state


def update_masks(
    due: Bool[Array, ""],
    renew: Callable[[PyTree], PyTree],
    masks: PyTree,
    inner_state: optax.OptState,
    params: PyTree,
) -> tuple[PyTree, optax.OptState]:
    """New masks where they are due, and an inner state that fits them."""

    def change(masks, inner_state):
        renewed = jax.tree.map(reshard_to, renew(masks), masks)
        weights, _ = flatten(params)
        before, after = flatten_masks(masks), flatten_masks(renewed)
        changed = {
            path: as_bool(before[path] ^ after[path], weights[path])
            for path in before
            if before[path] is not None
        }
        return renewed, reset_changed(inner_state, params, changed)

    keep = lambda masks, inner_state: (masks, inner_state)
    return lax.cond(due, change, keep, masks, inner_state)


def flip_rate(before: PyTree, after: PyTree, params: PyTree) -> Float32[Array, ""]:
    """The fraction of the masked leaves' weights whose packed masks differ."""
    weights, _ = flatten(params)
    olds, news = flatten_masks(before), flatten_masks(after)
    flips, total = jnp.zeros((), jnp.float32), 0
    for path, old in olds.items():
        if old is not None:
            bits = lax.population_count(old ^ news[path])
            counts = jnp.sum(jnp.atleast_1d(bits), axis=-1, dtype=jnp.int32)
            flips += jnp.sum(counts.astype(jnp.float32))
            total += weights[path].size
    return flips / max(total, 1)


def plan_for_masks(params: PyTree, plan: PlanLike, masks: PyTree) -> Plan:
    """The plan for `params`, which has to prune the leaves that have masks.

    Raises:
      ValueError: masks of another plan, as a restored state may hold them.
    """
    planned, entries = plan_for(params, plan, part=True), flatten_masks(masks)
    for leaf in planned.leaves:
        if (leaf.pattern is None) != (entries.get(leaf.path) is None):
            has = "no mask" if leaf.pattern else "a mask"
            raise ValueError(
                f"the state has {has} for leaf {leaf.path!r} of shape {leaf.shape}, "
                f"which is planned {leaf.decision}: it was made with another plan. "
                "Give that plan, or begin anew with tx.init(params)"
            )
    for leaf in planned.sparse:
        assert leaf.shape is not None
        assert leaf.axis is not None
        mask = entries[leaf.path]
        along = packed_axis(mask.shape, leaf.shape)
        fits = mask.shape == packed_shape(leaf.shape, leaf.axis)
        if not fits and along is not None:  # other shapes are no mask's of this leaf
            raise ValueError(
                f"the state's mask of leaf {leaf.path!r} of shape {leaf.shape} is "
                f"packed along axis {along}, and the leaf is planned {leaf.decision}: "
                "it was made with another plan. Give that plan, or begin anew with "
                "tx.init(params)"
            )
    return planned


def require_state(state: Any, kind: type) -> None:
    """Raises where a state is not what `tx.init` made.

    Raises:
      TypeError: it is of another type, such as that of an optimizer without masks.
    """
    if not isinstance(state, kind):
        raise TypeError(
            f"update takes the {kind.__name__} that tx.init(params) makes, got "
            f"{type(state).__name__}: begin with tx.init(params); to go on with the "
            "moments of a run without masks, state._replace(inner_state=...)"
        )


def require_params(params: PyTree | None) -> PyTree:
    """The parameters, without which a masked update is not known.

    Raises:
      ValueError: there are none.
    """
    if params is None:
        raise ValueError(
            "masked updates depend on the parameters: call "
            "tx.update(updates, state, params)"
        )
    return params


def next_count(count: jax.Array) -> jax.Array:
    """One more update made."""
    return jnp.asarray(optax.safe_increment(count))


def _step_to_zero(step: Array, weight: Array, mask: Array | None) -> Array:
    """The update where the weight is kept, elsewhere what takes it to zero."""
    if mask is None:
        return step
    # A narrower update could not hold minus the weight exactly.
    dtype = jnp.promote_types(step.dtype, weight.dtype)
    kept = as_bool(mask, weight)
    return jnp.where(kept, step.astype(dtype), -weight.astype(dtype))
