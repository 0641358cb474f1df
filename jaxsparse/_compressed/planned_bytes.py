"""How many bytes a weight takes where it is stored as its plan allows."""

import math

import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxsparse._compressed.compressed_array import compressed_shapes
from jaxsparse._compressed.indices import POSITION_BITS
from jaxsparse._patterns import NM
from jaxsparse._plans import LeafPlan


def planned_bytes(leaf: LeafPlan, dtype: DTypeLike) -> int:
    """Returns the bytes of a leaf that is compressed if its pattern can be.

    >>> planned_bytes(LeafPlan("w", (64, 32)), "bfloat16")
    4096
    >>> planned_bytes(LeafPlan("w", (64, 32), NM(2, 4), axis=0), "bfloat16")
    2304
    """
    assert leaf.shape is not None
    size = jnp.dtype(dtype).itemsize
    pattern, axis = leaf.pattern, leaf.axis
    if not isinstance(pattern, NM) or pattern.m not in POSITION_BITS or axis is None:
        return size * math.prod(leaf.shape)
    values, indices = compressed_shapes(leaf.shape, pattern, axis)
    return size * math.prod(values) + math.prod(indices)
