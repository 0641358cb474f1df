"""Transposable N:M masks: `n` of `m` along the rows and the columns of every block.

Both matmuls of a linear layer, with the weight and with its transpose, are then sparse.
Hubara et al., "Accelerated Sparse Neural Training" (2021, arXiv:2102.08124), propose
these masks; TSENOR (2025, arXiv:2505.23949) treats wide blocks.

Blocks up to 4 x 4 are solved exactly, in this module; wider blocks approximately, by
`transposable_local_search`.

A 2:4 block has 90 masks. Their sums are not computed one by one. Of the 36 masks of two
rows only the best for each count of weights kept per column matters. This leaves 19
sums for the upper rows, 19 for the lower rows and 19 for both: few enough for XLA to
fuse them into one pass over the scores. A float32 sum would lose small weights beside
large ones, so each sum is a pair of floats: the rounded sum and the rounding error.
"""

from collections.abc import Sequence
from functools import partial, reduce
from itertools import combinations
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt16

from jaxsparse._patterns.transposable_local_search import local_search
from jaxsparse._sharding import map_shards


#: The number of scores that the approximate search processes at once: on a CPU as many
#: as its caches hold, elsewhere enough to occupy the device (1.6 GB of temporaries in
#: float32).
CHUNK = {"cpu": 2**16, "default": 2**26}


def best_transposable_mask(
    scores: Float[Array, "..."], n: int | Int[Array, ""], m: int, axes: tuple[int, int]
) -> Bool[Array, "..."]:
    """Returns the mask that keeps `n` of each row and column of a block.

    For `m` up to 4 no mask has a larger sum of scores, computed with at least 46 bits
    (100 in float64). Of equally good masks it is the first in lexicographic order, row
    by row, with True before False. For larger `m` the sum is close to the largest one.
    NaN and infinity count as 32 times the largest finite score of their block, so they
    are kept. Subnormals may count as zero, depending on the device.

    Args:
      scores: real floats of any shape and sign; larger is better. Dtypes narrower than
        float32 are computed in float32.
      n: the number of weights kept in each row and column; may be traced.
      m: the size of a block along either axis.
      axes: the axes of the rows and of the columns of blocks: not negative, distinct,
        and of sizes divisible by `m`. All others are batch axes. Over explicit axes of
        a mesh no shard may split a block.

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
    # One axis at a time: the sharding of a split axis is defined.
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
    largest = _one_if_zero(jnp.max(_finite_magnitude(flat), (0, 1), keepdims=True))
    # Scaled, no block overflows or underflows.
    flat = _finite(flat, largest) / largest

    def in_chunks(flat: Float[Array, "m m blocks"], size: int):
        count = flat.shape[-1]
        size = max(1, min(size // m**2, count))
        padded = jnp.pad(flat, ((0, 0), (0, 0), (0, -count % size)))
        chunks = jnp.moveaxis(padded.reshape(m, m, -1, size), 2, 0)
        masks = lax.map(lambda chunk: local_search(chunk, n), chunks)
        return jnp.moveaxis(masks, 0, 2).reshape(m, m, -1)[..., :count]

    searches = {name: partial(in_chunks, size=size) for name, size in CHUNK.items()}
    mask = lax.platform_dependent(flat, **searches).reshape(moved.shape)
    return jnp.moveaxis(mask, (0, 1), (-3, -1))


class _Sum(NamedTuple):
    """A sum of scores, `high + low`, and the mask that it belongs to.

    Attributes:
      high: the rounded sum.
      low: the rounding error.
      bits: the mask as bits, as in `_best_bits`.
    """

    high: Float[Array, "..."]
    low: Float[Array, "..."]
    bits: int | Int[Array, "..."]


#: The best sums of one row or two by the number of weights kept in each column; in
#: `_two_rows` also by columns.
_Sums = dict[tuple[int, ...], _Sum]


def _exact(
    blocks: Float[Array, "*batch rows m columns m"], n: int | Int[Array, ""]
) -> Bool[Array, "*batch rows m columns m"]:
    m = blocks.shape[-1]
    searches = {"cpu": _best_bits_in_loop, "default": _best_bits}

    def bits_for(n: int):
        chosen = {name: partial(search, n=n) for name, search in searches.items()}
        return lambda: lax.platform_dependent(blocks, **chosen)

    if isinstance(n, int):
        bits = bits_for(n)()
    else:
        bits = lax.switch(n - 1, [bits_for(n) for n in range(1, m + 1)])
    # Without it, XLA on a GPU might repeat the search for every weight of a block.
    bits = lax.optimization_barrier(bits)
    batch = [1] * (bits.ndim - 1)
    shift = jnp.arange(m * m, dtype=jnp.uint16)[::-1].reshape(*batch, m, 1, m)
    return (bits[..., None, :, None] >> shift) & jnp.uint16(1) == 1


def _best_bits_in_loop(
    blocks: Float[Array, "*batch rows m columns m"], n: int
) -> UInt16[Array, "*batch rows columns"]:
    """Computes `_best_bits` in a loop: on a CPU, XLA fuses across other barriers."""
    *shape, m, columns, _ = blocks.shape
    strips = blocks.reshape(-1, m, columns, m)
    size = max(1, min(2**13 // columns, len(strips) // 2))
    bits = lax.map(lambda x: _best_bits(x, n), strips, batch_size=size)
    return bits.reshape(*shape, columns)


def _best_bits(
    blocks: Float[Array, "*batch m columns m"], n: int
) -> UInt16[Array, "*batch columns"]:
    """Returns the best mask of each block as bits, row by row from the highest bit."""
    m = blocks.shape[-1]
    scores = [[blocks[..., i, :, j] for j in range(m)] for i in range(m)]
    largest = _one_if_zero(
        reduce(jnp.maximum, [_finite_magnitude(x) for row in scores for x in row])
    )
    zero, bit = jnp.zeros_like(largest), 1 << (m * m - 1)
    rows = [
        [_Sum(_finite(x, largest), zero, bit >> (m * i + j)) for j, x in enumerate(row)]
        for i, row in enumerate(scores)
    ]
    upper, lower = _best_sums(rows[: m // 2], n), _best_sums(rows[m // 2 :], n)
    sums = []
    for counts, upper_sum in upper.items():
        # The lower rows keep in each column what is missing to `n`.
        lower_sum = lower.get(tuple(n - count for count in counts))
        if lower_sum is not None:
            sums.append(_add(upper_sum, lower_sum))
    bits = reduce(_better, sums).bits
    return jnp.broadcast_to(jnp.asarray(bits, jnp.uint16), largest.shape)


def _best_sums(rows: Sequence[Sequence[_Sum]], n: int) -> _Sums:
    """Returns the best sums of one row or two in which each row keeps `n`."""
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
    """Returns the best sums of two rows in which each row keeps `n`.

    In a column both rows, one or none of them keep a weight. The columns in which one
    row does are split evenly between the rows: of two columns the first row takes one
    and the second row the other; four columns are two such pairs, in one of two
    pairings.
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
            counts = tuple(2 * (j in kept) + (j in split) for j in columns)
            if sum(counts) == 2 * n:
                terms = [halves[split]] if split else []
                sums[counts] = reduce(_add, terms + [both[j] for j in kept])
    return sums


def _add(a: _Sum, b: _Sum) -> _Sum:
    """Adds two sums with the exact rounding error (Knuth, TAOCP 2, 4.2.2)."""
    high = a.high + b.high
    b_rounded = high - a.high
    error = (a.high - (high - b_rounded)) + (b.high - b_rounded)
    return _Sum(high, error + (a.low + b.low), a.bits | b.bits)


def _better(a: _Sum, b: _Sum) -> _Sum:
    """Returns the larger sum; of equal sums that of the first mask."""
    gain = (b.high - a.high) + (b.low - a.low)  # exact for nearly equal sums
    b_wins = (gain > 0) | ((gain == 0) & (b.bits > a.bits))
    pick = lambda x, y: jnp.where(b_wins, y, x)
    bits = jnp.asarray(a.bits, jnp.int32), jnp.asarray(b.bits, jnp.int32)
    return _Sum(pick(a.high, b.high), pick(a.low, b.low), pick(*bits))


def _limit(dtype) -> float:
    """Returns the bound of finite scores: a block's sum, times 32, stays finite."""
    return float(jnp.finfo(dtype).max) / 1024


def _finite_magnitude(x: Float[Array, "..."]) -> Float[Array, "..."]:
    bounded = jnp.minimum(jnp.abs(x), jnp.asarray(_limit(x.dtype), x.dtype))
    return jnp.where(jnp.isfinite(x), bounded, jnp.zeros_like(x))


def _one_if_zero(magnitude: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.where(magnitude > 0, magnitude, jnp.ones_like(magnitude))


def _finite(
    x: Float[Array, "..."], largest: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Replaces infinities and NaN by 32 times the largest finite magnitude."""
    limit = jnp.asarray(_limit(x.dtype), x.dtype)
    replacement = 32 * largest
    replacement = jnp.where(x == -jnp.inf, -replacement, replacement)
    return jnp.where(jnp.isfinite(x), jnp.clip(x, -limit, limit), replacement)
