"""Metrics of a sparse training run, for any logger."""

import math

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxsparse._masks import match_masks
from jaxsparse._reports.measure import measure_leaf, sparsity
from jaxsparse._training import flip_rates, get_masks
from jaxsparse._trees import PyTree, flatten


def metrics(opt_state: optax.OptState, params: PyTree) -> dict[str, Array]:
    """Returns the metrics of a sparse training run, as a flat dict of scalars.

    Traceable: call it in the compiled step and return its result, or stack it in
    `lax.scan`.

    Args:
      opt_state: a state with masks in it, at any nesting, as for `get_masks`.
      params: the parameters, a tree of arrays.

    Returns:
      Float32 scalars, by the names below.

      - `sparsity`: the fraction of zeros among all weights.
      - `masked`: the fraction of pruned weights, among the weights of all leaves with
        masks.
      - `magnitude_kept`: the share of the sum of magnitudes of these leaves that the
        masks keep: 1 for a sparse network, less under `straight_through` or before the
        first update.
      - `nonfinite`: the number of NaN and infinite weights of these leaves. No update
        prunes them: `inf - inf` is NaN. `mask_params` does.
      - `flip_rate`: the fraction of these leaves' weights that the last change of masks
        pruned or regrew. Only for states that record it, those of
        `regrow_by_gradient`, `regrow_at_random` and `add_sr_ste_decay`.
      - `sparsity/` and a path: the fraction of zeros of each leaf with a mask.

    Raises:
      ValueError: there are no masks in the state, or they do not fit the parameters.
      TypeError: the state is a dict, as Orbax restores it without a target.

    >>> from jaxsparse import wrap_optimizer
    >>> params = {"kernel": jnp.arange(128.0).reshape(16, 8), "bias": jnp.ones(8)}
    >>> state = wrap_optimizer(optax.sgd(0.1), "2:4").init(params)
    >>> for name, value in metrics(state, params).items():
    ...     print(f"{name}: {value:.3f}")
    sparsity: 0.007
    masked: 0.500
    magnitude_kept: 0.563
    nonfinite: 0.000
    sparsity/kernel: 0.008
    """
    leaves = flatten(params).by_path
    masks = match_masks(leaves, get_masks(opt_state))
    masked = {path: mask for path, mask in masks.items() if mask is not None}
    sizes = {path: math.prod(leaves[path].shape) for path in masked}
    measured = {path: measure_leaf(leaves[path], mask) for path, mask in masked.items()}

    def total(name: str) -> ArrayLike:
        return sum(values[name] for values in measured.values())

    scalars = {
        "sparsity": sparsity(params),
        "masked": _ratio(total("masked"), sum(sizes.values()), if_empty=0.0),
        "magnitude_kept": _ratio(total("kept"), total("magnitude"), if_empty=1.0),
        "nonfinite": jnp.asarray(total("nonfinite"), jnp.float32),
    }
    # If several wrappers record a rate, the mean weighted by the sizes of their leaves.
    rates = [
        (rate, sum(sizes[path] for path in paths))
        for rate, paths in flip_rates(opt_state)
    ]
    if rates:
        flipped = sum(rate * size for rate, size in rates)
        size = sum(size for _, size in rates)
        scalars["flip_rate"] = _ratio(flipped, size, if_empty=0.0)
    for path, values in measured.items():
        zeros = _ratio(values["zeros"], sizes[path], if_empty=0.0)
        scalars[f"sparsity/{path}"] = zeros
    return scalars


def _ratio(part: ArrayLike, total: ArrayLike, *, if_empty: float) -> Array:
    """Returns `part / total`, or `if_empty` if `total` is zero."""
    part, total = jnp.asarray(part, jnp.float32), jnp.asarray(total, jnp.float32)
    return jnp.where(total > 0, part / jnp.where(total > 0, total, 1), if_empty)
