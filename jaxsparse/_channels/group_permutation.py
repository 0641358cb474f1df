"""The permutations of one channel group, and what they gain."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32

from jaxsparse._channels.kept_scores import kept_by_rows, kept_scores
from jaxsparse._channels.permutation_search import search_permutation
from jaxsparse._patterns import NM


#: A search looks at so many scores, evenly over all, and so takes 1 GiB at most.
_SEARCHED_SCORES = 2**28


class GroupPermutation(NamedTuple):
    """The permutations of a channel group, and the sums of the scores that are kept.

    Attributes:
      order: int32, of shape `[problem, channel]`: the channels in their new order.
      before: the sum with the channels as they were.
      after: the sum with the channels permuted.
      rows: the sum if each output is pruned freely at the same density.
      total: the sum of all scores.
    """

    order: Int32[np.ndarray, "problem channel"]
    before: float
    after: float
    rows: float
    total: float


def permute_group(
    tables: Sequence[Float32[np.ndarray, "problem channel _"]],
    pattern: NM,
    blocks: int,
    key: jax.Array,
) -> GroupPermutation:
    """Searches the permutations of a channel group.

    Args:
      tables: the scores of the weights of each channel, one for each consumer.
      pattern: the pattern of the consumers.
      blocks: the number of equal blocks of channels that each stay together.
      key: the random key of the search.

    Returns:
      The permutations. None keeps less than before.
    """
    n, m = pattern.n, pattern.m
    order = _search(tables, pattern, blocks, key)
    old = np.broadcast_to(np.arange(order.shape[1], dtype=np.int32), order.shape)
    before = np.sum([kept_scores(table, old, n, m) for table in tables], axis=0)
    after = np.sum([kept_scores(table, order, n, m) for table in tables], axis=0)
    return GroupPermutation(
        np.where((after > before)[:, None], order, old),
        float(before.sum()),
        float(np.maximum(before, after).sum()),
        float(np.sum([kept_by_rows(table, n, m) for table in tables])),
        float(np.sum([table.sum(dtype=np.float64) for table in tables])),
    )


def _search(
    tables: Sequence[np.ndarray], pattern: NM, blocks: int, key: jax.Array
) -> Int32[np.ndarray, "problem channel"]:
    """Returns an order of channels that leaves each in its block."""
    problems, size, _ = tables[0].shape
    step = -(-sum(table.size for table in tables) // _SEARCHED_SCORES)
    scores = np.concatenate([table[:, :, ::step] for table in tables], axis=2)
    # Blocks that split groups of m are as good as none.
    blocks = blocks if size % (blocks * pattern.m) == 0 else 1
    in_blocks = scores.reshape(problems * blocks, size // blocks, -1)
    orders = search_permutation(jnp.asarray(in_blocks), pattern.n, pattern.m, key)
    starts = np.arange(blocks, dtype=np.int32)[:, None] * (size // blocks)
    return (orders.reshape(problems, blocks, -1) + starts).reshape(problems, size)
