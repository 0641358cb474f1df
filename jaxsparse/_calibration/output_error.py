"""How much a change of weights changes a layer's outputs."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32

from jaxsparse._calibration.leaf_statistics import LeafStatistics


@jax.jit
def output_error(
    before: Array, after: Array, statistics: LeafStatistics
) -> Float32[Array, ""]:
    """Returns the relative error of the outputs of a leaf, over all its problems.

    Args:
      before: the leaf, of any shape.
      after: the leaf that replaces it.
      statistics: its second moments.

    Returns:
      `norm(x @ (before - after)) / norm(x @ before)` over the inputs `x` of the
      statistics; 0 if the outputs are zero.
    """
    # Norms are sums over tokens, so problems with more tokens weigh more.
    tokens = statistics.tokens[:, None, None]

    def norm(w):
        product = jnp.matmul(
            statistics.second_moment, w, precision=lax.Precision.HIGHEST
        )
        # Rounding can make a sum that is close to zero negative.
        return jnp.sqrt(jnp.maximum(jnp.sum(tokens * w * product), 0))

    weights = statistics.scaled_matrices(before)
    pruned = statistics.scaled_matrices(after)
    outputs, error = norm(weights), norm(weights - pruned)
    return jnp.where(outputs > 0, error / outputs, jnp.zeros((), jnp.float32))
