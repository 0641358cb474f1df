"""What reports and metrics measure of one leaf."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, PyTree

from jaxsparse._compressed import Compressed, decompress, is_compressed
from jaxsparse._patterns import (
    as_bool,
    count_true,
    is_zero,
    wide_float,
)
from jaxsparse._trees import flatten, is_numeric


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


def sparsity(params: PyTree) -> Float32[Array, ""]:
    """The fraction of zeros among all weights; traceable.

    Args:
      params: a tree; leaves that hold no real numbers are left out. Biases, norms and
        whatever else stays dense count too, and so do the zeros that a `Compressed`
        leaf does not store.

    Returns:
      A float32 scalar, `0.0` for a tree without weights.

    >>> print(sparsity({"kernel": jnp.eye(4)}))
    0.75
    """
    leaves, _ = flatten(params, is_leaf=is_compressed)
    weights = [leaf for leaf in leaves.values() if is_numeric(leaf)]
    total = sum(math.prod(leaf.shape) for leaf in weights)
    stored = [leaf.values if is_compressed(leaf) else leaf for leaf in weights]
    left_out = jnp.asarray(total - sum(leaf.size for leaf in stored), jnp.float32)
    zeros = sum((count_true(is_zero(leaf)) for leaf in stored), left_out)
    return zeros / max(total, 1)
