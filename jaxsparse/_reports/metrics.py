"""Numbers of a sparse training run for any logger."""

import math

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from jaxsparse._masks import match_masks
from jaxsparse._reports.measure import (
    measure_leaf,
    sparsity,
)
from jaxsparse._training import flip_rates, get_masks
from jaxsparse._trees import flatten


def metrics(opt_state: optax.OptState, params: PyTree) -> dict[str, Array]:
    """What a sparse training run is to be watched by: a flat dict of scalars.

    Traceable: call it in the compiled step and return what it gives, or in `lax.scan`
    and have it stacked.

    Args:
      opt_state: a state with masks in it, through any nesting, as for `get_masks`.
      params: the parameters, a tree of arrays.

    Returns:
      Float32 scalars by name:

      - `sparsity`: the fraction of zeros among all weights.
      - `masked`: of the weights of all leaves that have masks, the fraction that is
        masked.
      - `magnitude_kept`: of the sum of the magnitudes of these leaves, the share that
        the masks keep: 1 for a network that is sparse, less under `straight_through`
        or before the first update.
      - `flip_rate`: the fraction of these leaves' weights that the last change of
        masks opened or closed; only where the state records it, which it does in
        `regrow_by_gradient`, `regrow_at_random` and `add_sr_ste_decay`.
      - `sparsity/` and a path: the fraction of zeros of each leaf that has a mask.

    Raises:
      ValueError: no masks in the state, or they do not fit the parameters.

    >>> from jaxsparse import wrap_optimizer
    >>> params = {"kernel": jnp.arange(128.0).reshape(16, 8), "bias": jnp.ones(8)}
    >>> state = wrap_optimizer(optax.sgd(0.1), "2:4").init(params)
    >>> for name, value in metrics(state, params).items():
    ...     print(f"{name}: {value:.3f}")
    sparsity: 0.007
    masked: 0.500
    magnitude_kept: 0.563
    sparsity/kernel: 0.008
    """
    leaves, _ = flatten(params)
    masks = match_masks(leaves, get_masks(opt_state))
    masked = {path: mask for path, mask in masks.items() if mask is not None}
    sizes = {path: math.prod(leaves[path].shape) for path in masked}
    measured = {path: measure_leaf(leaves[path], mask) for path, mask in masked.items()}
    total = lambda name: sum(values[name] for values in measured.values())
    found = {
        "sparsity": sparsity(params),
        "masked": _ratio(total("masked"), sum(sizes.values()), of_nothing=0.0),
        "magnitude_kept": _ratio(total("kept"), total("magnitude"), of_nothing=1.0),
    }
    # Where several wrappers record a rate, that of all their leaves together.
    rates = [
        (rate, sum(sizes[path] for path in paths))
        for rate, paths in flip_rates(opt_state)
    ]
    if rates:
        flipped = sum(rate * size for rate, size in rates)
        size = sum(size for _, size in rates)
        found["flip_rate"] = _ratio(flipped, size, of_nothing=0.0)
    for path, values in measured.items():
        found[f"sparsity/{path}"] = _ratio(values["zeros"], sizes[path], of_nothing=0.0)
    return found


def _ratio(part: ArrayLike, whole: ArrayLike, *, of_nothing: float) -> Array:
    part, whole = jnp.asarray(part, jnp.float32), jnp.asarray(whole, jnp.float32)
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), of_nothing)
