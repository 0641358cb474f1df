"""Measurements of one leaf, for reports and metrics, and the sparsity of a tree."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from jaxsparse._compressed import Compressed, decompress, is_compressed
from jaxsparse._patterns import as_bool, count_true, is_zero, wide_float
from jaxsparse._trees import PyTree, flatten, is_numeric


#: Scales magnitudes before they are summed, so that sums over any leaf are finite.
_SCALE = 2.0**-32


@jax.jit
def measure_leaf(
    leaf: jax.Array | Compressed, mask: jax.Array | None
) -> dict[str, jax.Array]:
    """Measures a real-valued leaf, and what its mask keeps of it.

    Args:
      leaf: an array, or a compressed weight, whose zeros count.
      mask: bool or packed, of the leaf's shape; None keeps everything.

    Returns:
      Scalars: the numbers of `zeros`, `nonfinite` and `masked` values; and the sums of
      the finite magnitudes, `magnitude` of all and `kept` of those that the mask keeps.
      The two sums are scaled, so only their ratio is meaningful.
    """
    weight = decompress(leaf) if is_compressed(leaf) else jnp.asarray(leaf)
    finite = jnp.isfinite(weight)
    magnitude = jnp.abs(weight.astype(wide_float(weight.dtype)))
    magnitude = jnp.where(finite, magnitude * _SCALE, 0)
    kept = jnp.ones((), bool) if mask is None else as_bool(mask, weight)
    # Added up apart, so that the share that a mask keeps is never above one.
    kept_sum = jnp.sum(jnp.where(kept, magnitude, 0))
    pruned_sum = jnp.sum(jnp.where(kept, 0, magnitude))
    return {
        "zeros": count_true(is_zero(weight)),
        "nonfinite": count_true(~finite),
        "masked": count_true(jnp.broadcast_to(~kept, weight.shape)),
        "magnitude": kept_sum + pruned_sum,
        "kept": kept_sum,
    }


def sparsity(params: PyTree) -> Float32[Array, ""]:
    """Returns the fraction of zeros among all weights. Traceable.

    Args:
      params: a tree of arrays; leaves that do not hold real numbers are ignored. All
        dense leaves count, such as biases and norms, and so do the zeros that a
        `Compressed` leaf does not store.

    Returns:
      A float32 scalar, `0.0` for a tree without weights.

    >>> print(sparsity({"kernel": jnp.eye(4)}))
    0.75
    """
    leaves = flatten(params, is_leaf=is_compressed).by_path
    weights = [leaf for leaf in leaves.values() if is_numeric(leaf)]
    total = sum(math.prod(leaf.shape) for leaf in weights)
    stored = [leaf.values if is_compressed(leaf) else leaf for leaf in weights]
    not_stored = jnp.asarray(total - sum(leaf.size for leaf in stored), jnp.float32)
    zeros = sum((count_true(is_zero(leaf)) for leaf in stored), not_stored)
    return zeros / max(total, 1)
