"""How much of the scores an n:m mask keeps, on the host, in float64."""

import numpy as np
from jaxtyping import Float32, Float64, Int32


def kept_scores(
    scores: Float32[np.ndarray, "problem channel row"],
    order: Int32[np.ndarray, "problem channel"],
    n: int,
    m: int,
) -> Float64[np.ndarray, " problem"]:
    """Returns the sum of the scores that the best mask keeps.

    Args:
      scores: the scores of the weights of each channel.
      order: the channels in the order in which groups of `m` are neighbours.
      n: how many of each group are kept.
      m: the size of a group.
    """
    permuted = scores[np.arange(len(scores))[:, None], order]
    groups = permuted.reshape(len(scores), -1, m, scores.shape[2])
    largest: list[np.ndarray] = []
    for position in range(m):
        scores = groups[:, :, position]
        for i, other in enumerate(largest):
            largest[i], scores = np.maximum(other, scores), np.minimum(other, scores)
        if len(largest) < n:
            largest.append(scores)
    return np.sum([x.sum((1, 2), dtype=np.float64) for x in largest], axis=0)


def kept_by_rows(
    scores: Float32[np.ndarray, "problem channel row"], n: int, m: int
) -> Float64[np.ndarray, " problem"]:
    """Returns the sum that is kept if each row is pruned freely, as much as by n:m."""
    start = scores.shape[1] - scores.shape[1] * n // m
    parted = np.partition(scores, start, axis=1) if start else scores
    return parted[:, start:].sum((1, 2), dtype=np.float64)
