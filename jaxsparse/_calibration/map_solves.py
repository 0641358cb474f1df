"""One linear algebra problem after the other on a CPU, many at once elsewhere.

On a CPU a batched LAPACK call hands parts of its batch to the threads that run the
program and waits for them. Two such calls at once, of one program, of two programs or
of two devices of one process, can each wait for a thread that the other one occupies,
forever. An unbatched call waits for none, and LAPACK has threads of its own.
"""

from collections.abc import Callable
from typing import Any

from jax import lax
from jaxtyping import PyTree


def map_solves(
    fn: Callable[..., PyTree], *stacks: Any, batch_size: int | None = None
) -> PyTree:
    """Maps a function that calls LAPACK over the leading axes of arrays.

    Args:
      fn: takes one element of each array.
      stacks: arrays with leading axes of one size; None stays None.
      batch_size: the number of elements that are computed at once, except on a CPU; all
        of them by default.

    Returns:
      The stacked results.
    """

    def one_by_one(*stacks: Any) -> PyTree:
        return lax.map(lambda element: fn(*element), stacks)

    def batched(*stacks: Any) -> PyTree:
        size = batch_size or len(stacks[0])
        return lax.map(lambda element: fn(*element), stacks, batch_size=size)

    by_platform: dict[str, Callable[..., Any]] = {"cpu": one_by_one, "default": batched}
    return lax.platform_dependent(*stacks, **by_platform)
