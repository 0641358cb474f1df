"""Refinement of masks and weights together: which patterns have it, and by what sweeps.

Groups of n:m are solved one after the other, see `group_sweeps`; where a pattern fixes
only the number of weights that are kept, weights of one output are swapped, see
`pair_swaps`.
"""

from functools import partial

from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float32

from jaxsparse._calibration.group_sweeps import MOST_MASKS, num_masks, sweep_groups
from jaxsparse._calibration.map_solves import map_solves
from jaxsparse._calibration.pair_swaps import swap_pairs
from jaxsparse._patterns import NM, Pattern, PerOutput, Unstructured
from jaxsparse._plans import LeafPlan


_Matrices = Float32[Array, "problem input output"]
_Masks = Bool[Array, "problem input output"]


def refine(
    pattern: Pattern,
    weights: _Matrices,
    starts: _Matrices,
    masks: _Masks,
    moments: Float32[Array, "problem input input"],
    sweeps: ArrayLike,
) -> tuple[_Matrices, _Masks]:
    """Improves the masks and the weights of all problems of a leaf.

    Args:
      pattern: a pattern that `check_refinable` accepts.
      weights: the weights before pruning.
      starts: the weights to improve.
      masks: the masks to improve.
      moments: the second moments.
      sweeps: the number of sweeps.

    Returns:
      The weights, with exact zeros where they are pruned, and the masks.
    """
    sweep = swap_pairs
    if isinstance(pattern, NM):
        sweep = partial(sweep_groups, pattern=(pattern.n, pattern.m))
    return map_solves(partial(sweep, sweeps=sweeps), weights, starts, masks, moments)


def check_sweeps(name: str, sweeps: int, least: int = 0) -> None:
    """Raises unless a number of sweeps or steps is an integer and not too small.

    Raises:
      TypeError: it is not an integer.
      ValueError: it is less than `least`.
    """
    if isinstance(sweeps, bool) or not isinstance(sweeps, int):
        raise TypeError(f"{name} must be an integer, got {sweeps!r}")
    if sweeps < least:
        raise ValueError(f"{name} must be an integer from {least} on, got {sweeps}")


def check_refinable(leaf: LeafPlan, remedy: str) -> None:
    """Raises unless a leaf's masks can be refined.

    Args:
      leaf: the plan of the leaf.
      remedy: what to do instead.

    Raises:
      ValueError: the pattern has no sweeps, or too many masks of a group.
    """
    match leaf.pattern:
        case NM(n=n, m=m, transposable=False) if num_masks(n, m) > MOST_MASKS:
            reason = (
                f"groups of {n}:{m} have {num_masks(n, m)} masks, and all are tried "
                f"for up to {MOST_MASKS} only"
            )
        case NM(transposable=False) | PerOutput() | Unstructured():
            return
        case _:
            reason = "only n:m, PerOutput and Unstructured are refined"
    raise ValueError(
        f"leaf {leaf.path!r} of shape {leaf.shape} is planned {leaf.decision!r}, which "
        f"cannot be refined: {reason}; {remedy}"
    )
