"""Transposable N:M masks: `n` of `m` along the rows and the columns of every block.

Both products of a linear layer, the one with the weights and the one with their
transpose, are then sparse. Hubara et al., "Accelerated Sparse Neural Training" (2021,
arXiv:2102.08124), propose such masks; TSENOR (2025, arXiv:2505.23949) treats wide
blocks.

Blocks up to 4 x 4 are solved exactly, below; wider ones nearly so, by `_transport`.

There are 90 masks of 2:4. Their sums are not computed one by one: from the last row up,
of all masks of the rows so far that leave the columns equally full only the best is
kept. Beside a large weight a float32 sum would lose small ones, so each sum is a pair
of floats: their sum, rounded, and what rounding lost (Knuth, TAOCP 2, 4.2.2).
"""

from collections.abc import Sequence
from functools import partial, reduce
from itertools import combinations
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt16

from jaxsparse._transport import search


#: Scores in memory at once where a search is approximate: on a CPU what its caches
#: hold, elsewhere enough to fill the machine (1.6 GB of temporaries in float32).
CHUNK = {"cpu": 2**16, "default": 2**26}


def best_transposable_mask(
    scores: Float[Array, "..."], n: int | Int[Array, ""], m: int, axes: tuple[int, int]
) -> Bool[Array, "..."]:
    """The mask of the largest sum that keeps `n` of each row and column of a block.

    Up to `m` of 4 no mask has a larger sum, in at least 46 bits (in float64: 100); of
    equally good ones it is the one whose first row, read as True before False, comes
    first, then the second row and so on. For larger `m` the sum is close to the
    largest. NaN and infinity count as 32 times the largest finite score of their block,
    so they are kept. Subnormals may count as zero, as the machine's arithmetic has it.

    Args:
      scores: real floats of any shape and sign; larger is better. Narrow formats are
        computed with in float32.
      n: how many to keep; may be traced.
      m: the side of a block.
      axes: the axes of the rows and of the columns of blocks: not negative, distinct,
        of sizes that `m` divides. All others are batch axes.

    Returns:
      True where the weight is kept, shaped like `scores`.
    """
    assert axes[0] != axes[1]
    assert all(scores.shape[axis] % m == 0 for axis in axes)
    if isinstance(n, int) and n >= m:
        return jnp.ones(scores.shape, bool)
    if scores.dtype.itemsize < 4:
        scores = scores.astype(jnp.float32)
    moved = jnp.moveaxis(scores, axes, (-2, -1))
    *batch, rows, columns = moved.shape
    blocks = moved.reshape(*batch, rows // m, m, columns // m, m)
    mask = _exact(blocks, n) if m <= 4 else _nearly(blocks, n)
    return jnp.moveaxis(mask.reshape(moved.shape), (-2, -1), axes)


def _nearly(
    blocks: Float[Array, "*batch rows m columns m"], n: int | Int[Array, ""]
) -> Bool[Array, "*batch rows m columns m"]:
    m = blocks.shape[-1]
    moved = jnp.moveaxis(blocks, (-3, -1), (0, 1))
    flat = moved.reshape(m, m, -1)
    largest = _largest(jnp.max(_finite_magnitude(flat), (0, 1), keepdims=True))
    # No scale of a block overflows or underflows then.
    flat = _finite(flat, largest) / largest

    def in_chunks(flat: Float[Array, "m m blocks"], size: int):
        count = flat.shape[-1]
        size = max(1, min(size // m**2, count))
        padded = jnp.pad(flat, ((0, 0), (0, 0), (0, -count % size)))
        chunks = jnp.moveaxis(padded.reshape(m, m, -1, size), 2, 0)
        found = lax.map(lambda chunk: search(chunk, n), chunks)
        return jnp.moveaxis(found, 0, 2).reshape(m, m, -1)[..., :count]

    paths = {name: partial(in_chunks, size=size) for name, size in CHUNK.items()}
    mask = lax.platform_dependent(flat, **paths).reshape(moved.shape)
    return jnp.moveaxis(mask, (0, 1), (-3, -1))


class _Sum(NamedTuple):
    """A sum of scores, `high + low`, and the mask of its rows as bits."""

    high: Float[Array, "..."]
    low: Float[Array, "..."]
    word: int | Int[Array, "..."]


def _exact(
    blocks: Float[Array, "*batch rows m columns m"], n: int | Int[Array, ""]
) -> Bool[Array, "*batch rows m columns m"]:
    m = blocks.shape[-1]
    if isinstance(n, int):
        words = _best_words(blocks, n)
    else:
        of = lambda n: lambda: _best_words(blocks, n)
        words = lax.switch(jnp.clip(n, 0, m), [of(n) for n in range(m + 1)])
    # Or the compiler might search once for every place of a block.
    words = lax.optimization_barrier(words)
    place = jnp.arange(m * m, dtype=jnp.uint16)[::-1].reshape(m, 1, m)
    return (words[..., None, :, None] >> place) & jnp.uint16(1) == 1


def _best_words(
    blocks: Float[Array, "*batch rows m columns m"], n: int
) -> UInt16[Array, "*batch rows columns"]:
    """The best mask of each block as bits, its first place in the highest of them."""
    m = blocks.shape[-1]
    lanes = [[blocks[..., i, :, j] for j in range(m)] for i in range(m)]
    largest = _largest(
        reduce(jnp.maximum, [_finite_magnitude(x) for row in lanes for x in row])
    )
    options = list(combinations(range(m), n))
    zero = jnp.zeros_like(largest)
    best = {(0,) * m: _Sum(zero, zero, 0)}  # by how full the columns are
    for i in reversed(range(m)):
        lane = [_finite(x, largest) for x in lanes[i]]
        above: dict[tuple[int, ...], _Sum] = {}
        for kept in options:  # of equal sums the first option wins
            row = _row(lane, kept, m * (m - 1 - i))
            for full, below in best.items():
                count = tuple(c + (j in kept) for j, c in enumerate(full))
                if all(n - i <= c <= n for c in count):
                    mine = row if i == m - 1 else _add(row, below)
                    above[count] = (
                        _better(above[count], mine) if count in above else mine
                    )
        best = above
    (found,) = best.values()
    return jnp.broadcast_to(jnp.asarray(found.word, jnp.uint16), largest.shape)


def _row(lane: Sequence[Array], kept: Sequence[int], shift: int) -> _Sum:
    """The sum of what is kept of one row."""
    zero = jnp.zeros_like(lane[0])
    word = sum(1 << (len(lane) - 1 - j + shift) for j in kept)
    terms = [_Sum(lane[j], zero, 0) for j in kept] or [_Sum(zero, zero, 0)]
    return reduce(_add, terms)._replace(word=word)


def _add(a: _Sum, b: _Sum) -> _Sum:
    high, lost = _two_sum(a.high, b.high)
    return _Sum(*_two_sum(high, lost + (a.low + b.low)), a.word | b.word)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """`a + b` rounded, and what the rounding lost, exactly."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def _better(first: _Sum, second: _Sum) -> _Sum:
    """The larger sum; of equal ones the first."""
    larger = second.low > first.low
    wins = (second.high > first.high) | ((second.high == first.high) & larger)
    as_words = [jnp.asarray(s.word, jnp.int32) for s in (second, first)]
    return _Sum(
        jnp.where(wins, second.high, first.high),
        jnp.where(wins, second.low, first.low),
        jnp.where(wins, *as_words),
    )


def _limit(dtype) -> float:
    """What finite scores are clamped to: a block's sum, scaled by 32, stays finite."""
    return float(jnp.finfo(dtype).max) / 1024


def _finite_magnitude(x: Float[Array, "..."]) -> Float[Array, "..."]:
    bounded = jnp.minimum(jnp.abs(x), jnp.asarray(_limit(x.dtype), x.dtype))
    return jnp.where(jnp.isfinite(x), bounded, jnp.zeros_like(x))


def _largest(magnitude: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.where(magnitude > 0, magnitude, jnp.ones_like(magnitude))


def _finite(
    x: Float[Array, "..."], largest: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Scores in whose sums nothing is lost to infinities and NaN."""
    limit = jnp.asarray(_limit(x.dtype), x.dtype)
    beyond = 32 * largest
    beyond = jnp.where(x == -jnp.inf, -beyond, beyond)
    return jnp.where(jnp.isfinite(x), jnp.clip(x, -limit, limit), beyond)
