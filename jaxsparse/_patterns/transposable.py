"""Transposable N:M masks: `n` of `m` along the rows and the columns of every block.

Both products of a linear layer, the one with the weights and the one with their
transpose, are then sparse. Hubara et al., "Accelerated Sparse Neural Training" (2021,
arXiv:2102.08124), propose such masks; TSENOR (2025, arXiv:2505.23949) treats wide
blocks.

Blocks up to 4 x 4 are solved exactly, below; wider ones nearly so, by
`transposable_local_search`.

There are 90 masks of 2:4. Their sums are not computed one by one: of the 36 ways to
mask two rows, those that fill the columns alike compete, which leaves 19 for the upper
rows, 19 for the lower ones, and 19 sums of both: few enough for a compiler to make one
pass over the scores of it. Beside a large weight a float32 sum would lose small ones,
so each sum is a pair of floats: their sum, rounded, and what rounding lost.
"""

from collections.abc import Sequence
from functools import partial, reduce
from itertools import combinations
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt16

from jaxsparse._patterns.transposable_local_search import (
    local_search as search_by_trades,
)
from jaxsparse._sharding import map_shards


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
        of sizes that `m` divides. All others are batch axes. Over explicit axes of a
        mesh shards hold whole blocks.

    Returns:
      True where the weight is kept, shaped like `scores`.
    """
    assert axes[0] != axes[1]
    assert all(scores.shape[axis] % m == 0 for axis in axes)
    if isinstance(n, int) and n >= m:
        return jnp.ones(scores.shape, bool)
    if not scores.size:
        return jnp.zeros(scores.shape, bool)
    if scores.dtype.itemsize < 4:
        scores = scores.astype(jnp.float32)
    moved = jnp.moveaxis(lax.stop_gradient(scores), axes, (-2, -1))
    *batch, rows, columns = moved.shape
    # One axis at a time, as it is known how that is sharded.
    strips = moved.reshape(*batch, rows // m, m, columns)
    blocks = strips.reshape(*strips.shape[:-1], columns // m, m)
    search = _exact if m <= 4 else _approximate
    if isinstance(n, int):
        mask = map_shards(lambda x: search(x, n), (-3, -1), blocks)
    else:
        mask = map_shards(search, (-3, -1), blocks, n)
    mask = mask.reshape(strips.shape).reshape(moved.shape)
    return jnp.moveaxis(mask, (-2, -1), axes)


def _approximate(
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
        found = lax.map(lambda chunk: search_by_trades(chunk, n), chunks)
        return jnp.moveaxis(found, 0, 2).reshape(m, m, -1)[..., :count]

    paths = {name: partial(in_chunks, size=size) for name, size in CHUNK.items()}
    mask = lax.platform_dependent(flat, **paths).reshape(moved.shape)
    return jnp.moveaxis(mask, (0, 1), (-3, -1))


class _Sum(NamedTuple):
    """A sum of scores, `high + low`, and the mask of its rows as bits."""

    high: Float[Array, "..."]
    low: Float[Array, "..."]
    word: int | Int[Array, "..."]


#: The best sums of some rows, by how many of each column, or which columns, they keep.
_Sums = dict[tuple[int, ...], _Sum]


def _exact(
    blocks: Float[Array, "*batch rows m columns m"], n: int | Int[Array, ""]
) -> Bool[Array, "*batch rows m columns m"]:
    m = blocks.shape[-1]
    paths = {"cpu": _words_in_turns, "default": _best_words}

    def words_of(n: int):
        chosen = {name: partial(path, n=n) for name, path in paths.items()}
        return lambda: lax.platform_dependent(blocks, **chosen)

    if isinstance(n, int):
        words = words_of(n)()
    else:
        words = lax.switch(n - 1, [words_of(n) for n in range(1, m + 1)])
    # Or a GPU's compiler might search once for every place of a block.
    words = lax.optimization_barrier(words)
    place = jnp.arange(m * m, dtype=jnp.uint16)[::-1].reshape(m, 1, m)
    return (words[..., None, :, None] >> place) & jnp.uint16(1) == 1


def _words_in_turns(
    blocks: Float[Array, "*batch rows m columns m"], n: int
) -> UInt16[Array, "*batch rows columns"]:
    """`_best_words` in a loop: a CPU's compiler respects no barrier but that."""
    *shape, m, columns, _ = blocks.shape
    strips = blocks.reshape(-1, m, columns, m)
    size = max(1, min(2**13 // columns, len(strips) // 2))
    words = lax.map(lambda x: _best_words(x, n), strips, batch_size=size)
    return words.reshape(*shape, columns)


def _best_words(
    blocks: Float[Array, "*batch m columns m"], n: int
) -> UInt16[Array, "*batch columns"]:
    """The best mask of each block as bits, its first place in the highest of them."""
    m = blocks.shape[-1]
    lanes = [[blocks[..., i, :, j] for j in range(m)] for i in range(m)]
    largest = _largest(
        reduce(jnp.maximum, [_finite_magnitude(x) for row in lanes for x in row])
    )
    zero, bit = jnp.zeros_like(largest), 1 << (m * m - 1)
    rows = [
        [_Sum(_finite(x, largest), zero, bit >> (m * i + j)) for j, x in enumerate(row)]
        for i, row in enumerate(lanes)
    ]
    above, below = _best_sums(rows[: m // 2], n), _best_sums(rows[m // 2 :], n)
    # What the upper rows leave of the columns the lower ones have to fill.
    rest = {full: below.get(tuple(n - c for c in full)) for full in above}
    found = [_add(above[full], lower) for full, lower in rest.items() if lower]
    word = reduce(_better, found).word
    return jnp.broadcast_to(jnp.asarray(word, jnp.uint16), largest.shape)


def _best_sums(rows: Sequence[Sequence[_Sum]], n: int) -> _Sums:
    """The best sums of one row or two that keep `n` each."""
    if len(rows) == 2:
        return _two_rows(rows[0], rows[1], n)
    (row,) = rows
    return {
        tuple(int(j in kept) for j in range(len(row))): reduce(
            _add, [row[j] for j in kept]
        )
        for kept in combinations(range(len(row)), n)
    }


def _two_rows(first: Sequence[_Sum], second: Sequence[_Sum], n: int) -> _Sums:
    """The best sums of two rows that keep `n` each.

    Both keep some columns, and of some others each keeps a half. These halves are
    found two columns at a time: if there are four, one column of a pair is the first
    row's and one the second's, in one of two ways to pair them.
    """
    columns = range(len(first))
    both = [_add(first[j], second[j]) for j in columns]
    halves: _Sums = {
        (j, k): _better(_add(first[j], second[k]), _add(first[k], second[j]))
        for j, k in combinations(columns, 2)
    }
    if len(columns) == 4:
        crossed = _add(halves[0, 2], halves[1, 3])
        halves[0, 1, 2, 3] = _better(crossed, _add(halves[0, 1], halves[2, 3]))
    sums: _Sums = {}
    for split in [(), *halves]:
        others = [j for j in columns if j not in split]
        for kept in combinations(others, max(n - len(split) // 2, 0)):
            full = tuple(2 * (j in kept) + (j in split) for j in columns)
            if sum(full) == 2 * n:
                shared = [halves[split]] if split else []
                sums[full] = reduce(_add, shared + [both[j] for j in kept])
    return sums


def _add(a: _Sum, b: _Sum) -> _Sum:
    """The sum of two: what rounding loses is exact (Knuth, TAOCP 2, 4.2.2)."""
    high = a.high + b.high
    of_b = high - a.high
    lost = (a.high - (high - of_b)) + (b.high - of_b)
    return _Sum(high, lost + (a.low + b.low), a.word | b.word)


def _better(a: _Sum, b: _Sum) -> _Sum:
    """The larger sum; of equal ones that of the first mask."""
    more = (b.high - a.high) + (b.low - a.low)  # close ones differ by no rounding
    wins = (more > 0) | ((more == 0) & (b.word > a.word))
    pick = lambda x, y: jnp.where(wins, y, x)
    words = jnp.asarray(a.word, jnp.int32), jnp.asarray(b.word, jnp.int32)
    return _Sum(pick(a.high, b.high), pick(a.low, b.low), pick(*words))


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
