"""What is kept of a layer's inputs takes over from what goes.

Ridge regression on second moments. For the inputs `x` of a layer, and the kept ones
`x_k` among them, the new weights minimise `norm(x @ w - x_k @ v)`, so that nothing but
the second moment of `x` is needed. Shrinkage `s` of the moment is ridge regression: it
adds `s / (1 - s)` of the mean squares to the diagonal, and pulls `v` towards the `w` of
the kept inputs.
"""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from jaxsparse._calibration import (
    LeafStatistics,
    Shrinkage,
    best_shrinkage,
    kept_least_squares,
    map_solves,
    shrunk_moments,
)
from jaxsparse._sharding import device_put_like
from jaxsparse._shrinking.take_out import Order, is_kept


def refit(
    path: str,
    leaf: np.ndarray | Array,
    orders: Mapping[int, Order],
    statistics: LeafStatistics,
    shrinkage: Shrinkage,
) -> np.ndarray | Array:
    """Returns a leaf whose kept inputs give the layer's outputs as closely as they can.

    Args:
      path: its path.
      leaf: the leaf.
      orders: see `orders_along`.
      statistics: its second moments.
      shrinkage: the fraction that their entries off the diagonal are reduced by.

    Returns:
      The leaf in its old shape, in which the inputs that go no longer matter. If none
      goes, it is unchanged.

    Raises:
      ValueError: the outputs of one product do not keep the same inputs.
    """
    axes = [axis for axis in statistics.columns.inputs if axis in orders]
    inputs = [is_kept(orders[axis], axis) for axis in axes]
    if not inputs:
        return leaf
    mask = np.broadcast_to(np.logical_and.reduce(inputs), leaf.shape)
    masks = np.asarray(statistics.columns.to_matrices(jnp.asarray(mask)))
    if (masks != masks[:, :, :1]).any():
        raise ValueError(
            f"leaf {path!r} of shape {leaf.shape} keeps other inputs for some outputs "
            "than for others, and can't be refitted: shrink without statistics"
        )
    counts = masks[:, :, 0].sum(1)
    order = np.argsort(~masks[:, :, 0], axis=1, stable=True)
    leaf = jnp.asarray(leaf)
    run = partial(_refit, leaf, order[:, : counts[0]].astype(np.int32), statistics)
    fitted = best_shrinkage(run, lambda x: x, leaf, statistics, shrinkage)
    return device_put_like(fitted, leaf)


@jax.jit
def _refit(
    leaf: Array,
    kept: Int[Array, "problem kept"],
    statistics: LeafStatistics,
    shrinkage: ArrayLike,
) -> Array:
    moments = shrunk_moments(statistics, shrinkage)
    weights = statistics.scaled_matrices(leaf)
    fitted = map_solves(kept_least_squares, weights, kept, moments)
    return statistics.unscaled_leaf(fitted, leaf)
