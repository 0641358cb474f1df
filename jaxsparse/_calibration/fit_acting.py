"""Weights are fitted again if some that were kept act on no output."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float32

from jaxsparse._calibration.admm import fit_to_mask
from jaxsparse._calibration.leaf_factors import acting_weights
from jaxsparse._calibration.leaf_statistics import LeafStatistics
from jaxsparse._calibration.map_solves import map_solves


_Matrices = Float32[Array, "problem input output"]


def fit_acting(
    statistics: LeafStatistics,
    weights: _Matrices,
    pruned: _Matrices,
    masks: Bool[Array, "problem input output"],
    moments: Float32[Array, "problem input input"],
) -> _Matrices:
    """Returns pruned weights of which those without an effect compensate for nothing.

    Where a factor is zero, as that of a constant mask, a kept weight has no effect. If
    there are such, all others are fitted again, by conjugate gradients.

    Args:
      statistics: those of the leaf.
      weights: the scaled weights before pruning.
      pruned: the scaled weights after.
      masks: which are kept.
      moments: the second moments.
    """
    acting = acting_weights(statistics)
    if acting is None:
        return pruned
    return lax.cond(
        jnp.any(masks & ~acting),
        lambda: map_solves(fit_to_mask, weights, pruned, masks & acting, moments),
        lambda: pruned,
    )
