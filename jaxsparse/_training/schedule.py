"""Pruning schedules: progress from 0 (dense) to 1 (the pattern), by the step."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


#: A function of the step, which may be traced, that returns a progress in `[0, 1]`.
Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]


def one_shot_schedule(step: int, *, end: int | None = None) -> Schedule:
    """Returns a schedule that prunes to the whole pattern at one step.

    Args:
      step: the number of dense updates; the next one prunes.
      end: the step from which every weight is kept again, for `add_sr_ste_decay`.
        Training that is dense in its last steps, after Hu et al., "Accelerating
        Transformer Pre-training with 2:4 Sparsity" (2024, arXiv:2404.01847). The
        masks of `wrap_optimizer` do not open.

    Returns:
      A schedule for `wrap_optimizer`, `keep_params_sparse` or `add_sr_ste_decay`.

    Raises:
      ValueError: a negative step, or `end` before it.

    >>> schedule = one_shot_schedule(10, end=20)
    >>> print(schedule(9), schedule(10), schedule(19), schedule(20))
    0.0 1.0 1.0 0.0
    """
    if step < 0:
        raise ValueError(f"one_shot_schedule takes a step of 0 or more, got {step}")
    if end is not None and end < step:
        raise ValueError(f"one_shot_schedule requires end >= step = {step}, got {end}")

    def progress(count):
        begun = jnp.asarray(count) >= step
        return jnp.asarray(begun if end is None else begun & (count < end), jnp.float32)

    return progress


def cubic_schedule(start: int, end: int) -> Schedule:
    """Returns a schedule that prunes fast at first and slowly towards the end.

    The progress is `1 - (1 - t)**3` for `t` from 0 at `start` to 1 at `end`: the
    sparsity function of Zhu and Gupta, "To prune, or not to prune" (2017,
    arXiv:1710.01878, equation 1). An n:m pattern goes from m:m to n:m, one weight of
    each group at a time, as in decaying N:M masks (Kao et al. 2022, arXiv:2209.07617).
    For linear progress use `optax.linear_schedule(0.0, 1.0, steps, start)`.

    Args:
      start: the number of dense updates.
      end: the step at which the whole pattern is reached.

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
            f"cubic_schedule requires 0 <= start < end, got start={start}, end={end}"
        )

    def progress(count):
        left = (end - jnp.asarray(count, jnp.float32)) / (end - start)
        return 1 - jnp.clip(left, 0.0, 1.0) ** 3

    return progress


def check_schedule(schedule: Any) -> None:
    """Raises `TypeError` unless a schedule is None or a function of the step."""
    if schedule is not None and not callable(schedule):
        raise TypeError(
            f"schedule must be a function of the step, got {schedule!r}: "
            f"one_shot_schedule({schedule!r}) prunes at a step, "
            "cubic_schedule(start, end) step by step"
        )


def check_every(every: int) -> None:
    """Raises `ValueError` unless `every` is a number of steps."""
    if every < 1:
        raise ValueError(
            f"every is the number of steps from one refresh of the masks to the next, "
            f"at least 1, got {every}"
        )
