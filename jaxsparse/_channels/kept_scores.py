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
    permuted = np.take_along_axis(scores, order[:, :, None], 1)
    return _largest(permuted.reshape(len(scores), -1, m, scores.shape[2]), n)


def kept_by_rows(
    scores: Float32[np.ndarray, "problem channel row"], n: int, m: int
) -> Float64[np.ndarray, " problem"]:
    """Returns the sum that is kept if each row is pruned freely, as much as by n:m."""
    return _largest(scores[:, None], scores.shape[1] * n // m)


def _largest(
    scores: Float32[np.ndarray, "problem group member row"], count: int
) -> Float64[np.ndarray, " problem"]:
    """Returns the sum over the `count` largest of the members of all groups."""
    start = scores.shape[2] - count
    parted = np.partition(scores, start, axis=2) if start else scores
    return parted[:, :, start:].sum((1, 2, 3), dtype=np.float64)
