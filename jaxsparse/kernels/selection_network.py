"""Selection networks: the n-th largest of a few values by minima and maxima alone.

Batcher's odd-even merge sort ("Sorting networks and their applications", AFIPS 1968)
sorts the two halves of a group; the n-th largest of both then needs no further sorting.
Of eight values that takes 27 minima and maxima and of sixteen 91, where comparing all
pairs takes 56 and 240. Nothing in a network depends on data, so it runs on columns of
groups, lane beside lane: on arrays, or on the registers of a kernel.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import TypeVar


_V = TypeVar("_V")
_Two = Callable[[_V, _V], _V]


def nth_largest(values: Sequence[_V], n: int, smaller: _Two, larger: _Two) -> _V:
    """The n-th largest of a power of two of values.

    Args:
      values: what to select from, `1 <= n <= len(values)`.
      n: which one; 1 is the largest.
      smaller: the minimum of two values.
      larger: their maximum.
    """
    half = len(values) // 2
    if not half:
        return values[0]
    left = sort(values[:half], smaller, larger)
    right = sort(values[half:], smaller, larger)
    # Of the ways to take n from the tops of both, the one whose last is largest.
    last = []
    for taken in range(max(0, n - half), min(n, half) + 1):
        ends = [*left[:taken][-1:], *right[: n - taken][-1:]]
        last.append(reduce(smaller, ends))
    return reduce(larger, last)


def sort(values: Sequence[_V], smaller: _Two, larger: _Two) -> list[_V]:
    """A power of two of values, the largest first."""
    if len(values) == 1:
        return list(values)
    half = len(values) // 2
    left = sort(values[:half], smaller, larger)
    right = sort(values[half:], smaller, larger)
    return _merged(left, right, smaller, larger)


def _merged(left: list[_V], right: list[_V], smaller: _Two, larger: _Two) -> list[_V]:
    if len(left) == 1:
        return [larger(left[0], right[0]), smaller(left[0], right[0])]
    first, *even = _merged(left[::2], right[::2], smaller, larger)
    *odd, last = _merged(left[1::2], right[1::2], smaller, larger)
    pairs = zip(even, odd, strict=True)
    between = [pick(a, b) for a, b in pairs for pick in (larger, smaller)]
    return [first, *between, last]
