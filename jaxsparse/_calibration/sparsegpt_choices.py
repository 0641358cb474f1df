"""How SparseGPT chooses masks: by groups, or an equal share of every block."""

import numpy as np
from jaxtyping import Array

from jaxsparse._calibration.matrices import LayerMatrices
from jaxsparse._calibration.sparsegpt import BLOCK, Choose
from jaxsparse._patterns import (
    NM,
    Pattern,
    PerOutput,
    best_nm_mask,
    best_row_mask,
    best_unstructured_masks,
    rank_by_magnitude,
)


def mask_choice(pattern: Pattern, limits: Array) -> tuple[Choose, int]:
    """Returns how masks are chosen, and for how many inputs at once."""
    if isinstance(pattern, NM):
        n, m = pattern.n, pattern.m

        def choose_groups(scores, _):
            return best_nm_mask(rank_by_magnitude(scores), n, m, axis=0)

        return choose_groups, m

    def choose_block(scores, first):
        block = first // np.int32(BLOCK)
        kept = limits[block + 1] - limits[block]
        ranked = rank_by_magnitude(scores)
        if isinstance(pattern, PerOutput):
            return best_row_mask(ranked, kept, rows=(1,))
        return best_unstructured_masks([ranked], kept)[0]

    return choose_block, BLOCK


def kept_before_blocks(
    pattern: Pattern, kept: int, matrices: LayerMatrices
) -> np.ndarray:
    """Returns the number of weights kept before each block of inputs, per problem.

    Every input keeps the same share, rounded down to whole weights.
    """
    problems, inputs = matrices.num_problems, matrices.inputs_per_problem
    ends = np.minimum(np.arange(-(-inputs // BLOCK) + 1) * BLOCK, inputs)
    if isinstance(pattern, PerOutput):
        shares = [kept] * problems
    else:  # `kept` counts the weights of the whole leaf
        ranks = range(problems)
        shares = [kept * (i + 1) // problems - kept * i // problems for i in ranks]
    limits = [[share * int(end) // inputs for end in ends] for share in shares]
    return np.array(limits, np.int32)
