"""Sparsity patterns: what a group of weights may look like."""

import re
from dataclasses import dataclass


#: The widest group that is supported.
MAX_GROUP = 64


@dataclass(frozen=True)
class NM:
    """N:M sparsity: at most `n` of every `m` consecutive weights are kept.

    `n` counts the weights that are *kept*, as NVIDIA writes 2:4. Papers that count
    the zeros write 1:4 and 3:4 the other way round. Mishra et al., "Accelerating Sparse
    Deep Neural Networks" (2021, arXiv:2104.08378), describe 2:4 and why it is fast.

    Attributes:
      n: weights kept in each group.
      m: the size of a group, up to 64.

    Raises:
      TypeError: `n` or `m` is not an integer.
      ValueError: not `1 <= n <= m <= 64`.

    >>> print(NM(2, 4), NM(2, 4).density)
    2:4 0.5
    """

    n: int
    m: int

    def __post_init__(self):
        for name, value in (("n", self.n), ("m", self.m)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(
                    f"{name} of an n:m pattern must be an int, got {value!r}"
                )
        if not 1 <= self.n <= self.m <= MAX_GROUP:
            raise ValueError(
                f"pattern {self.n}:{self.m} keeps {self.n} of every {self.m} weights: "
                f"an n:m pattern needs 1 <= n <= m <= {MAX_GROUP}"
            )

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def density(self) -> float:
        """The fraction of weights kept."""
        return self.n / self.m


#: Whatever names a pattern: `NM(2, 4)`, `"2:4"`, `"2:4 sparsity"` or `(2, 4)`.
PatternLike = NM | str | tuple[int, int]


def as_pattern(pattern: PatternLike) -> NM:
    """Reads a pattern in any of its spellings.

    Raises:
      ValueError: a string that spells no pattern, or numbers out of range.
      TypeError: neither a string, a pair of integers nor an `NM`.
    """
    if isinstance(pattern, NM):
        return pattern
    if isinstance(pattern, str):
        spelled = re.fullmatch(r"\s*(\d+):(\d+)(\s+sparsity)?\s*", pattern)
        if spelled is None:
            raise ValueError(
                f"unknown pattern {pattern!r}: write '2:4' or '2:4 sparsity' for "
                "2 weights kept in each group of 4"
            )
        return NM(int(spelled[1]), int(spelled[2]))
    if isinstance(pattern, tuple) and len(pattern) == 2:
        return NM(*pattern)
    raise TypeError(
        f"a pattern is '2:4', '2:4 sparsity', (2, 4) or NM(2, 4), got {pattern!r}"
    )
