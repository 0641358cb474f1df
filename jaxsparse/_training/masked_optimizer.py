"""What all masked optimizers share: masks that change, and updates to exact zeros.

A public `update` flattens each tree once. Between that and the tree it returns, leaves
and masks are dictionaries by canonical path.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float32, PyTree

from jaxsparse._masks import kept_count
from jaxsparse._patterns import as_bool, packed_axis, packed_shape
from jaxsparse._plans import Plan, PlanLike, counted_groups, plan_for_part
from jaxsparse._sharding import reshard_to
from jaxsparse._training.inner_state import reset_changed
from jaxsparse._training.state import RESTORED_DICT, is_restored_dict
from jaxsparse._trees import Keys, Leaves, flatten_as


#: The masks of a tree by canonical path, packed; None for a leaf that stays dense.
Masks = Mapping[str, Any]


def masked_init(
    inner: optax.GradientTransformation, weights: Leaves, masks: Masks
) -> optax.OptState:
    """The state of the inner optimizer for masked parameters."""
    return inner.init(_masked(weights, _bool_masks(weights.by_path, masks)))


def masked_update(
    inner: optax.GradientTransformationExtraArgs,
    gradients: Leaves,
    inner_state: optax.OptState,
    weights: Leaves,
    masks: Masks,
    *,
    mask_gradients: bool,
    extra_args: Mapping[str, Any],
) -> tuple[PyTree, optax.OptState]:
    """One update of the inner optimizer, which takes every masked weight to zero."""
    kept = _bool_masks(weights.by_path, masks)
    updates, inner_state = inner.update(
        _masked(gradients, kept if mask_gradients else {}),
        inner_state,
        _masked(weights, kept),
        **extra_args,
    )
    steps = flatten_as(updates, gradients)
    exact = {
        path: _step_to_zero(step, weights.by_path[path], kept[path])
        for path, step in steps.by_path.items()
    }
    return steps.unflatten(exact), inner_state


def update_masks(
    due: Bool[Array, ""],
    renew: Callable[[Masks], Masks],
    masks: Masks,
    inner_state: optax.OptState,
    weights: Mapping[str, Any],
    paths: Mapping[Keys, str],
) -> tuple[dict[str, Any], optax.OptState]:
    """New masks where they are due, and an inner state that fits them.

    Args:
      due: whether masks are to change.
      renew: returns the new masks of the leaves that have masks.
      masks: the masks.
      inner_state: the state of the inner optimizer.
      weights: the parameters by canonical path.
      paths: these paths by JAX's keys.
    """
    before = {path: mask for path, mask in masks.items() if mask is not None}

    def change(before, inner_state):
        after = renew(before)
        after = {path: reshard_to(after[path], mask) for path, mask in before.items()}
        changed = {
            path: _as_bool(mask ^ after[path], weights[path])
            for path, mask in before.items()
        }
        return after, reset_changed(inner_state, paths, changed)

    keep = lambda before, inner_state: (before, inner_state)
    after, inner_state = lax.cond(due, change, keep, before, inner_state)
    return {path: after.get(path) for path in masks}, inner_state


def counts_move(plan: Plan, before: ArrayLike, progress: Array) -> Bool[Array, ""]:
    """Whether any pattern keeps another number of weights at two progresses."""
    before = jnp.asarray(before, jnp.float32)
    counts = {(total, target) for _, total, target in counted_groups(plan.sparse)}
    moved = [kept_count(*x, progress) != kept_count(*x, before) for x in counts]
    return jnp.any(jnp.stack(moved)) if moved else jnp.zeros((), bool)


def flip_rate(
    before: Masks, after: Masks, weights: Mapping[str, Any]
) -> Float32[Array, ""]:
    """The fraction of the masked leaves' weights whose packed masks differ."""
    flips, total = jnp.zeros((), jnp.float32), 0
    for path, old in before.items():
        if old is not None:
            bits = lax.population_count(old ^ after[path])
            counts = jnp.sum(jnp.atleast_1d(bits), axis=-1, dtype=jnp.int32)
            flips += jnp.sum(counts.astype(jnp.float32))
            total += weights[path].size
    return flips / max(total, 1)


def plan_for_masks(weights: Mapping[str, Any], plan: PlanLike, masks: Masks) -> Plan:
    """The plan for `weights`, which must prune exactly the leaves that have masks.

    Raises:
      ValueError: masks of another plan, as a restored state may hold them.
    """
    planned = plan_for_part(weights, plan)
    for leaf in planned.leaves:
        if (leaf.pattern is None) != (masks.get(leaf.path) is None):
            has = "no mask" if leaf.pattern else "a mask"
            raise ValueError(
                f"the state has {has} for leaf {leaf.path!r} of shape {leaf.shape}, "
                f"which is planned {leaf.decision}: it was made with another plan. "
                "Give that plan, or begin anew with tx.init(params)"
            )
    for leaf in planned.sparse:
        assert leaf.shape is not None
        assert leaf.axis is not None
        mask = masks[leaf.path]
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
      TypeError: it is of another type, such as that of an optimizer without masks, or
        the dict that Orbax restores without a target.
    """
    if is_restored_dict(state):
        raise TypeError(RESTORED_DICT)
    if not isinstance(state, kind):
        raise TypeError(
            f"update takes the {kind.__name__} that tx.init(params) makes, got "
            f"{type(state).__name__}: begin with tx.init(params); to go on with the "
            "moments of a run without masks, state._replace(inner_state=...)"
        )


def require_params(params: PyTree | None) -> PyTree:
    """The parameters, which every masked update needs.

    Raises:
      ValueError: there are none.
    """
    if params is None:
        raise ValueError(
            "masked updates depend on the parameters: call "
            "tx.update(updates, state, params)"
        )
    return params


def next_count(count: ArrayLike) -> jax.Array:
    """One more update made. A restored count may be an array of NumPy."""
    return jnp.asarray(optax.safe_increment(count))


def _bool_masks(weights: Mapping[str, Any], masks: Masks) -> dict[str, Array | None]:
    return {
        path: None if masks[path] is None else _as_bool(masks[path], weight)
        for path, weight in weights.items()
    }


_as_bool = jax.jit(as_bool)


def _masked(tree: Leaves, kept: Mapping[str, Array | None]) -> PyTree:
    """The tree with zeros where weights are pruned."""
    return tree.unflatten(
        {
            path: _masked_leaf(leaf, kept.get(path))
            for path, leaf in tree.by_path.items()
        }
    )


def _masked_leaf(leaf: Any, kept: Array | None) -> Any:
    if kept is None:
        return leaf
    leaf = jnp.asarray(leaf)  # float64 of NumPy becomes float32
    return jnp.where(kept, leaf, jnp.zeros((), leaf.dtype))


def _step_to_zero(step: Array, weight: Array, kept: Array | None) -> Array:
    """The update where the weight is kept, elsewhere what takes it to zero."""
    if kept is None:
        return step
    # A narrower update could not hold minus the weight exactly.
    dtype = jnp.promote_types(step.dtype, weight.dtype)
    return jnp.where(kept, step.astype(dtype), -weight.astype(dtype))
