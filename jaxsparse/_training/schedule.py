"""Schedules of pruning: a step in, progress from 0 (dense) to 1 (the pattern) out."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


#: A step, which may be traced, in; a scalar progress in `[0, 1]` out.
Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]


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


def cubic_schedule(start: int, end: int) -> Schedule:
    """Gradual pruning: fast while much is left to prune, slow towards the end.

    The progress is `1 - (1 - t)**3` for `t` from 0 at `start` to 1 at `end`: the
    sparsity function of Zhu and Gupta, "To prune, or not to prune" (2017,
    arXiv:1710.01878, equation 1). Used with an n:m pattern it walks from m:m to n:m,
    one weight of each group at a time, as in decaying N:M masks (Kao et al. 2022,
    arXiv:2209.07617). A linear walk is `optax.linear_schedule(0.0, 1.0, steps, start)`.

    Args:
      start: the number of updates made dense.
      end: the step from which on the pattern is whole.

    Returns:
      A schedule for `wrap_optimizer` or `keep_params_sparse`.

    Raises:
      ValueError: not `0 <= start < end`.

    >>> schedule = cubic_schedule(100, 300)
    >>> print(schedule(100), schedule(200), schedule(300))
    0.0 0.875 1.0
    """
    if not 0 <= start < end:
        raise ValueError(
            f"cubic_schedule prunes from step `start` to step `end`, 0 <= start < end, "
            f"got {start} and {end}"
        )

    def progress(count):
        left = (end - jnp.asarray(count, jnp.float32)) / (end - start)
        return 1 - jnp.clip(left, 0.0, 1.0) ** 3

    return progress


def check_every(every: int) -> None:
    """Raises `ValueError` unless masks are looked at every so many steps."""
    if every < 1:
        raise ValueError(
            f"every counts the steps from one look at the masks to the next, at least "
            f"1, got {every}"
        )
