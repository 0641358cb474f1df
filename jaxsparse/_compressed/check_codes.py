"""Finds codes that `compress` cannot write, in one pass over the indices.

A code that has the positions of its slots has them in ascending order, below `m`. A
code that has one bit for each position has `n` bits set. Padding is zero. Other codes
have no meaning: they were damaged, or belong to another pattern.
"""

import math
from functools import partial, reduce
from itertools import pairwise
from operator import and_, or_

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, UInt32

from jaxsparse._compressed.compressed_array import Compressed
from jaxsparse._compressed.indices import POSITION_BITS, code_bits, stores_positions
from jaxsparse._patterns import NM, group_positions
from jaxsparse._sharding import gather_groups


def code_fault(leaf: Compressed) -> str:
    """Returns how many codes of a compressed weight are impossible, and the first.

    It reads values, so it runs outside `jit`.

    Args:
      leaf: a compressed weight whose arrays have the shapes of `compressed_shapes`.

    Returns:
      A text such as `3 of 32 groups have codes that compress cannot write; the first is
      of the group that starts at (4, 0)`, or an empty string if all are possible.
    """
    if leaf.indices.size == 0:
        return ""
    axis = leaf.axis % leaf.ndim
    codes, groups = jnp.asarray(leaf.indices), leaf.shape[axis] // leaf.pattern.m
    if not bool(_any_impossible(codes, leaf.pattern, groups, axis)):
        return ""
    impossible = _impossible_codes(codes, leaf.pattern, groups, axis)
    bad = np.stack([np.asarray(x) for x in impossible], axis + 1)
    bad = bad.reshape(*bad.shape[:axis], -1, *bad.shape[axis + 2 :])
    is_group = np.arange(bad.shape[axis]) < groups
    if not is_group.all() and not bad.compress(is_group, axis).any():
        return "the padding after the codes is not zero"
    bad = bad.compress(is_group, axis)
    start = [int(i) for i in np.argwhere(bad)[0]]
    start[axis] *= leaf.pattern.m
    return (
        f"{bad.sum()} of {bad.size} groups have codes that compress cannot write; the "
        f"first is of the group that starts at {tuple(start)}"
    )


@partial(jax.jit, static_argnums=(1, 2, 3))
def _any_impossible(
    codes: Array, pattern: NM, groups: int, axis: int
) -> Bool[Array, ""]:
    return reduce(
        or_, (jnp.any(bad) for bad in _impossible_codes(codes, pattern, groups, axis))
    )


def _impossible_codes(
    codes: Array, pattern: NM, groups: int, axis: int
) -> list[Bool[Array, "..."]]:
    """Returns for each code of a run of whole bytes whether it is impossible.

    A run is the fewest bytes that whole codes fill. Codes after the last group are
    padding.
    """
    width = code_bits(pattern)
    run = math.lcm(width, 8) // 8
    padding = [(0, 0)] * codes.ndim
    padding[axis] = 0, -codes.shape[axis] % run
    codes = jnp.pad(gather_groups(codes, run, axis), padding)
    runs = group_positions(codes, run, axis)
    count = 8 * run // width
    first = count * jnp.arange(runs[0].shape[axis])
    first = first.reshape(-1, *[1] * (codes.ndim - axis - 1))
    return [
        jnp.where(
            first + j < groups,
            ~_is_possible(code := _code(runs, j * width, width), pattern),
            code != 0,
        )
        for j in range(count)
    ]


def _code(runs: list[Array], start: int, width: int) -> UInt32[Array, "..."]:
    """Returns the code that has bits `start` to `start + width` of every run."""
    first, last = start // 8, (start + width - 1) // 8
    parts = (
        runs[i].astype(jnp.uint32) << jnp.uint32(8 * (i - first))
        for i in range(first, last + 1)
    )
    return reduce(or_, parts) >> jnp.uint32(start % 8) & jnp.uint32((1 << width) - 1)


def _is_possible(code: UInt32[Array, "..."], pattern: NM) -> Bool[Array, "..."]:
    if not stores_positions(pattern):
        return lax.population_count(code) == pattern.n
    size = POSITION_BITS[pattern.m]
    positions = [
        code >> jnp.uint32(size * slot) & jnp.uint32((1 << size) - 1)
        for slot in range(pattern.n)
    ]
    ascending = (a < b for a, b in pairwise(positions))
    return reduce(and_, ascending, positions[-1] < pattern.m)
