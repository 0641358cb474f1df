"""The factors of a leaf, in its own coordinates.

A weight `w` that a function multiplies by a factor before its product acts as `w` times
the factor does. Products show leaves in pieces and in other orders; here the factors of
the pieces are put together.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32

from jaxsparse._calibration.channel_index import unravel
from jaxsparse._calibration.leaf_statistics import LeafStatistics
from jaxsparse._sharding import replicate
from jaxsparse._trace import Contraction, Path


#: The relative difference of factors that count as equal: rounding, in other programs.
_TOLERANCE = 1e-5


def unknown_factors(shape: tuple[int, ...]) -> Float32[Array, "..."]:
    """Returns the factors before the first product: NaN."""
    return jnp.full(shape, jnp.nan, jnp.float32)


def add_factors(
    earlier: Float32[Array, "..."],
    factor: Float32[Array, "..."],
    contraction: Contraction,
    steps: Mapping[Path, Any],
) -> Float32[Array, "..."]:
    """Returns the factors of a leaf after one more product.

    Args:
      earlier: the factors from the products before.
      factor: the factors in one product, of the shape of its operand.
      contraction: how the operand shows the leaf.
      steps: the current step of each enclosing scan, by its path.

    Returns:
      The factors; all infinite if they are not finite, or if those of one weight differ
      between products.
    """
    factor = replicate(factor)
    index, is_leaf = _flat_index(contraction, steps, earlier.shape)
    flat = earlier.reshape(-1)
    size = np.int32(flat.size)
    index = jnp.where(is_leaf, index, size).reshape(-1)
    factor = factor.reshape(-1)
    read = lambda x: x.at[index].get(mode="fill", fill_value=0)
    merged = flat.at[index].set(factor, mode="drop")
    same = lambda x: (
        jnp.abs(read(x) - factor) <= np.float32(_TOLERANCE) * jnp.abs(factor)
    )
    # Copies of a weight in one operand are read back from where all were written.
    fits = (jnp.isnan(read(flat)) | same(flat)) & same(merged) & jnp.isfinite(factor)
    ok = jnp.all(fits | (index == size))
    return jnp.where(ok, merged, jnp.inf).reshape(earlier.shape)


def acting_weights(
    statistics: LeafStatistics,
) -> Bool[Array, "problem input output"] | None:
    """Returns which weights act on an output: those whose factor is not zero.

    None for a leaf that is not scaled: all do.
    """
    if statistics.factors is None:
        return None
    return statistics.columns.to_matrices(statistics.factors) != 0


def _flat_index(
    contraction: Contraction, steps: Mapping[Path, Any], shape: tuple[int, ...]
) -> tuple[Int32[Array, "..."], Bool[Array, "..."]]:
    """Returns the flat index in the leaf of each element of an operand.

    The second result is False for elements that are not of the leaf.
    """
    _, _, view, operand = contraction
    strides = [int(np.prod(shape[i + 1 :], dtype=int)) for i in range(len(shape))]
    flatten = lambda indices: sum(
        (np.int32(strides[axis]) * index for axis, index in indices.items()),
        np.int32(0),
    )
    total, is_leaf = jnp.zeros(operand, jnp.int32), jnp.ones(operand, bool)
    for i, (axis, size) in enumerate(zip(view.axes, operand, strict=True)):
        along = [size if j == i else 1 for j in range(len(operand))]
        element = np.arange(size, dtype=np.int32) - np.int32(axis.offset)
        inside = (element >= 0) & (element < axis.covered)
        index = flatten(unravel(axis, np.where(inside, element, 0)))
        index = np.broadcast_to(index, size)
        total += index.astype(np.int32).reshape(along)
        is_leaf &= inside.reshape(along)
    for axis, scan in view.indexed:
        step = np.int32(0) if scan is None else steps[scan]
        total += flatten(unravel(axis, step))
    return total, is_leaf
