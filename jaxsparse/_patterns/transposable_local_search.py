"""Transposable masks of wide blocks: local search from a mask that is already valid.

Choosing `n` of every row and column of a block for the largest sum of scores is a
transportation problem. This search begins at the band that keeps `n` places of every
row and column and makes only exchanges that leave those counts as they are. So there
is nothing to round, to complete or to repair, and the mask is valid whatever the
scores are. Two kinds of exchanges are made, all blocks in step:

- Two rows trade two columns: the best of such trades for every pair of rows, half of
  the rows against the other half at a time, as in a tournament. Then the same for
  pairs of columns. The gain is small, but many are made at once.
- Up to four columns pass a place on in a ring, each in the row where it costs least.
  The best ring is read off products of matrices in which sums are replaced by maxima
  and products by sums. This finds what no trade of two rows or columns can.

Of Gaussian and heavy-tailed scores in 2:8, 4:8, 4:16, 8:16 and 16:32 the sum comes out
within 0.03 % of the optimum on average and within 1.5 % in the worst block seen. What
is missed needs a ring of five columns or more: most often where few places of many are
kept (1:16: 0.12 % on average, 2.6 % at worst) and where many scores are equal.

Other starts were tried: entropy-regularised transport (TSENOR, arXiv:2505.23949),
rounded and completed, and taking the highest scores in turn. Followed by trades alone
both miss up to 5 % of a block of 2:8. It is the rings that matter, and with them the
band, which needs no other part, does well enough.
"""

from functools import partial, reduce

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int


#: How often all rows and all columns trade, and how many rings follow. Of wide blocks
#: more rings would gain 0.02 %, of narrow ones nothing.
SWEEPS, RINGS = 2, 6


def local_search(
    scores: Float[Array, "m m blocks"], n: int | Int[Array, ""]
) -> Bool[Array, "m m blocks"]:
    """A mask that keeps `n` of every row and column of each block.

    At any time there are about five arrays of the size of `scores` in memory.

    Args:
      scores: finite, no magnitude above a sixteenth of the largest of the dtype. The
        blocks lie along the last axis, so that all computing is elementwise in it.
      n: how many to keep; may be traced.
    """
    m = scores.shape[0]
    place = jnp.arange(m)
    band = (place[None, :] - place[:, None]) % m < n
    mask = jnp.broadcast_to(band[:, :, None], scores.shape)

    def sweep(_, mask):
        mask = _swap_pairs(scores, mask)
        return _swap_pairs(scores.swapaxes(0, 1), mask.swapaxes(0, 1)).swapaxes(0, 1)

    mask = lax.fori_loop(0, SWEEPS, sweep, mask)
    return lax.fori_loop(0, RINGS, partial(_rotate_ring, scores), mask)


def _swap_pairs(
    scores: Float[Array, "m m blocks"], mask: Bool[Array, "m m blocks"]
) -> Bool[Array, "m m blocks"]:
    """Every row meets every other once and they make their best trade.

    The first half meets the reversed second half, then all rows move on by one; of an
    even number the first stays. After as many rounds as rows move all are back.
    """
    m = scores.shape[0]
    half, fixed = m // 2, 1 - m % 2
    move_on = lambda x: jnp.concatenate([x[:fixed], x[-1:], x[fixed:-1]])

    def meet(_, carry):
        scores, mask = carry
        mine, other = mask[:half], mask[m - half :][::-1]
        gain = scores[:half] - scores[m - half :][::-1]
        low = jnp.asarray(-jnp.inf, gain.dtype)
        take, best = _highest(jnp.where(other & ~mine, gain, low), axis=1)
        give, cost = _highest(jnp.where(mine & ~other, -gain, low), axis=1)
        column = lax.broadcasted_iota(jnp.int32, mine.shape, 1)
        traded = (column == take) | (column == give)
        traded &= best + cost > 0
        middle = jnp.zeros_like(mask[half : m - half])
        mask ^= jnp.concatenate([traded, middle, traded[::-1]])
        return move_on(scores), move_on(mask)

    return lax.fori_loop(0, m - fixed, meet, (scores, mask))[1]


def _rotate_ring(
    scores: Float[Array, "m m blocks"], turn, mask: Bool[Array, "m m blocks"]
) -> Bool[Array, "m m blocks"]:
    """One ring of columns a, b, c, d: a gives a place to b in some row, and so on.

    A ring may be shorter: a column may stay, that is, pass on to itself. Columns that
    are not neighbours must differ, or two steps could change the same place. Only a and
    c are chosen with b = d in mind; every other turn they are chosen for a ring of
    three, where that cannot happen.
    """
    m = scores.shape[0]
    low = jnp.asarray(-jnp.inf, scores.dtype)
    same = jnp.eye(m, dtype=bool)[:, :, None]
    given = jnp.where(mask, -scores, low).swapaxes(0, 1)  # [column, row, block]
    taken = jnp.where(mask, low, scores)
    step = jnp.where(same, jnp.zeros((), scores.dtype), _max_plus(given, taken))
    two = _max_plus(step, step)
    back = jnp.where(turn % 2 == 0, two, step).swapaxes(0, 1)
    rings = jnp.where(same, low, two + back).reshape(m * m, -1)
    best, _ = _highest(rings, axis=0)
    a, c = best // m, best % m

    column = lax.broadcasted_iota(jnp.int32, (m, best.shape[-1]), 0)
    b, there = _highest(_pick(step, a) + _pick(step.swapaxes(0, 1), c), axis=0)
    return_trip = _pick(step, c) + _pick(step.swapaxes(0, 1), a)
    d, again = _highest(jnp.where(column == b, low, return_trip), axis=0)

    changed = jnp.zeros_like(mask)
    for x, y in ((a, b), (b, c), (c, d), (d, a)):
        row, _ = _highest(_pick(given, x) + _pick(taken.swapaxes(0, 1), y), axis=0)
        # Of a column that stays nothing changes, in whatever row.
        changed ^= (column == row)[:, None] & ((column == x) ^ (column == y))[None]
    return mask ^ (changed & (there + again > 0))


def _max_plus(
    left: Float[Array, "m m blocks"], right: Float[Array, "m m blocks"]
) -> Float[Array, "m m blocks"]:
    """The matrix product with `max` for `+` and `+` for `*`, in one pass."""
    sums = (left[:, k, None] + right[k] for k in range(left.shape[0]))
    return reduce(jnp.maximum, sums)


def _highest(
    x: Float[Array, "..."], axis: int
) -> tuple[Int[Array, "..."], Float[Array, "..."]]:
    """The first place of the highest value along `axis`, and the value."""
    # Two reductions of one value are vectorised, one of value and place is not.
    value = jnp.max(x, axis, keepdims=True)
    place = lax.broadcasted_iota(jnp.int32, x.shape, axis)
    return jnp.min(jnp.where(x == value, place, x.shape[axis]), axis, keepdims=True), (
        value
    )


def _pick(
    x: Float[Array, "m m blocks"], which: Int[Array, "1 blocks"]
) -> Float[Array, "m blocks"]:
    """Of every block `x[which]`."""
    return jnp.take_along_axis(x, which[None], axis=0, mode="promise_in_bounds")[0]
