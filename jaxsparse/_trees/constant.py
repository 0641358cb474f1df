"""Whether all magnitudes of a leaf are equal, so that no ranking tells them apart."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxsparse._trees.paths import is_numeric


def is_constant(leaf: Any, *, signed: bool = False) -> bool:
    """Returns whether all values of a leaf have the same magnitude, such as zero.

    Returns False if the values are not known here: under a trace, for shapes alone, and
    for arrays that other processes hold a part of. Only the first row is read of a leaf
    that is not constant there.

    Args:
      leaf: a leaf of any kind.
      signed: whether values of different sign differ.
    """
    if not is_numeric(leaf) or math.prod(leaf.shape) < 2:
        return False
    if isinstance(leaf, np.ndarray):
        parts = [leaf]
    elif (
        isinstance(leaf, jax.Array)
        and not isinstance(leaf, Tracer)
        and leaf.is_fully_addressable
        and not leaf.is_deleted()
    ):
        parts = [shard.data for shard in leaf.addressable_shards]
    else:
        return False
    # On the host, the first value meets parts on any device.
    row = np.asarray(parts[0][(0,) * (leaf.ndim - 1)])
    return all(_all_equal(part, row[0], signed) for part in (row, *parts))


def _all_equal(values: Any, value: Any, signed: bool) -> bool:
    numpy = np if isinstance(values, np.ndarray) else jnp
    if jnp.issubdtype(values.dtype, jnp.integer) and jnp.iinfo(values.dtype).bits < 8:
        values, value = values.astype(np.int16), value.astype(np.int16)
    if not signed:
        values, value = numpy.abs(values), numpy.abs(value)
    return bool(numpy.all(values == value))
