"""What reports and metrics measure of one leaf."""

import jax
import jax.numpy as jnp

from jaxsparse._best_masks import as_bool
from jaxsparse._compress import Compressed, decompress, is_compressed
from jaxsparse._score import count_true, is_zero, wide_float


#: Of magnitudes, before they are added up.
_SCALE = 2.0**-32


@jax.jit
def measure_leaf(
    leaf: jax.Array | Compressed, mask: jax.Array | None
) -> dict[str, jax.Array]:
    """Numbers of a leaf of real numbers, and what its mask keeps of it.

    Args:
      leaf: an array, or a compressed weight, whose zeros count.
      mask: bool or packed, of the leaf's shape; None keeps everything.

    Returns:
      Scalars: how many `zeros`, `nonfinite` and `masked` values, and the sums of the
      finite magnitudes, `magnitude` of all and `kept` of those that are not masked, of
      which only ratios mean anything.
    """
    weight = decompress(leaf) if is_compressed(leaf) else jnp.asarray(leaf)
    finite = jnp.isfinite(weight)
    magnitude = jnp.abs(weight.astype(wide_float(weight.dtype)))
    # Scaled, so that sums of any size of leaf are finite.
    magnitude = jnp.where(finite, magnitude * _SCALE, 0)
    keeps = jnp.ones((), bool) if mask is None else as_bool(mask, weight)
    return {
        "zeros": count_true(is_zero(weight)),
        "nonfinite": count_true(~finite),
        "masked": count_true(jnp.broadcast_to(~keeps, weight.shape)),
        "magnitude": jnp.sum(magnitude),
        "kept": jnp.sum(jnp.where(keeps, magnitude, 0)),
    }
