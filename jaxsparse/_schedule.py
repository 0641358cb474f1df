"""Schedules of pruning: a step in, progress from 0 (dense) to 1 (the pattern) out."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float32, Int


#: A step, which may be traced, in; a scalar progress in `[0, 1]` out.
Schedule = Callable[[Int[Array, ""]], Float32[Array, ""]]


def one_shot_schedule(step: int) -> Schedule:
    """Dense before `step`, the whole pattern from then on: pruned there, once.

    Args:
      step: the number of updates made dense; the next one prunes.

    Returns:
      A schedule for `wrap_optimizer` or `keep_params_sparse`.

    Raises:
      ValueError: a negative step.

    >>> schedule = one_shot_schedule(10)
    >>> print(schedule(9), schedule(10))
    0.0 1.0
    """
    if step < 0:
        raise ValueError(f"one_shot_schedule prunes at a step from 0 on, got {step}")
    return lambda count: jnp.asarray(count >= step, jnp.float32)
