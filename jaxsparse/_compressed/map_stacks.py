"""Kernels under `jax.vmap` over stacked weights: one call after the other."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike


def map_stacks(
    fn: Callable[..., Any],
    size: int,
    batched: Sequence[bool],
    operands: Sequence[ArrayLike],
) -> Any:
    """Returns the stacked results of `fn` for each element of a batch.

    Args:
      fn: a function of the operands without their batch axis.
      size: that of the batch.
      batched: for each operand whether it has a batch axis, its first one.
      operands: arrays. Those without a batch axis are not copied.
    """
    pairs = [*zip(map(jnp.asarray, operands), batched, strict=True)]

    def call(i: Any) -> Any:
        own = (lax.dynamic_index_in_dim(x, i, 0, False) if b else x for x, b in pairs)
        return fn(*own)

    return lax.map(call, jnp.arange(size))
