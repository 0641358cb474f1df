"""The mask of each pattern that keeps the largest sum of squares of a matrix.

Masked by it, the matrix is the nearest one that obeys the pattern.
"""

import numpy as np
from jaxtyping import Array, Int

from jaxsparse._calibration.admm import Project
from jaxsparse._calibration.matrices import LayerMatrices
from jaxsparse._patterns import (
    NM,
    Block,
    Pattern,
    PerOutput,
    best_nm_mask,
    best_row_mask,
    best_transposable_mask,
    best_unstructured_masks,
    expand_tiles,
    rank_by_magnitude,
    rank_tiles,
)


def projection(pattern: Pattern, kept: Int[Array, ""]) -> Project:
    """Returns the function from a matrix `[input, output]` to its best mask.

    Args:
      pattern: n:m, `PerOutput`, `Block`, or `Unstructured` within a leaf.
      kept: how many weights each output keeps, or how many blocks or weights the matrix
        keeps.
    """
    match pattern:
        case NM(n=n, m=m, transposable=True):
            return lambda x: best_transposable_mask(x * x, n, m, (0, 1))
        case NM(n=n, m=m):
            return lambda x: best_nm_mask(rank_by_magnitude(x), n, m, axis=0)
        case PerOutput():
            return lambda x: best_row_mask(rank_by_magnitude(x), kept, rows=(1,))
        case Block(shape=shape):
            return lambda x: expand_tiles(
                best_unstructured_masks([rank_tiles(x * x, shape, signed=True)], kept)[
                    0
                ],
                shape,
            )
    return lambda x: best_unstructured_masks([rank_by_magnitude(x)], kept)[0]


def kept_per_problem(
    pattern: Pattern, kept: int, matrices: LayerMatrices
) -> np.ndarray:
    """Returns how many units each problem keeps, of those that a leaf keeps.

    Every problem keeps the same share, up to one unit; for `PerOutput` and n:m, `kept`
    counts for each output and each group, and so for each problem.
    """
    problems = matrices.num_problems
    if isinstance(pattern, NM | PerOutput):
        return np.full(problems, kept, np.int32)
    ends = [kept * i // problems for i in range(problems + 1)]
    return np.diff(ends).astype(np.int32)
