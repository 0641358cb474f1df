"""Sparsity patterns: which weights of a group, or of a whole leaf, may be kept."""

import re
from dataclasses import dataclass, field


#: The widest group that is supported.
MAX_GROUP = 64


@dataclass(frozen=True)
class NM:
    """N:M sparsity: at most `n` of every `m` consecutive weights are kept.

    `n` counts the weights that are *kept*, as in NVIDIA's 2:4. In papers that count the
    zeros, 1:4 means 3:4 here. Mishra et al., "Accelerating Sparse Deep Neural Networks"
    (2021, arXiv:2104.08378), describe 2:4 and why it is fast.

    Attributes:
      n: weights kept in each group.
      m: the size of a group, up to 64.
      transposable: whether at most `n` of `m` weights are kept along the output axis,
        too, in every m x m block. The matmul with the transposed weight, which computes
        the gradients of a layer's inputs, is then sparse as well (Hubara et al. 2021,
        arXiv:2102.08124). The mask is the best one for `m` up to 4, and close to the
        best one for larger `m`.

    Raises:
      TypeError: `n` or `m` is not an integer.
      ValueError: not `1 <= n <= m <= 64`.

    >>> print(NM(2, 4), NM(2, 4).density)
    2:4 0.5
    >>> print(NM(2, 4, transposable=True))
    2:4 transposable
    """

    n: int
    m: int
    transposable: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
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
        suffix = " transposable" if self.transposable else ""
        return f"{self.n}:{self.m}{suffix}"

    @property
    def density(self) -> float:
        """The fraction of weights kept."""
        return self.n / self.m


@dataclass(frozen=True)
class Unstructured:
    """Unstructured sparsity: the lowest scores of a leaf are pruned.

    Attributes:
      sparsity: the fraction of the weights that is pruned, to the nearest weight.
      across_leaves: whether all leaves of this pattern share one threshold. `sparsity`
        is then their joint sparsity, and the sparsity of each leaf follows from its
        scores. An optimizer that sees a part of the tree counts that part only.

    Raises:
      ValueError: not `0 < sparsity < 1`.

    >>> print(Unstructured(0.9))
    90% unstructured
    """

    sparsity: float
    across_leaves: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        _check_sparsity(self.sparsity)

    def __str__(self) -> str:
        across = " across leaves" if self.across_leaves else ""
        return f"{_percent(self.sparsity)} unstructured{across}"

    @property
    def density(self) -> float:
        """The fraction of weights kept."""
        return 1 - self.sparsity


@dataclass(frozen=True)
class PerOutput:
    """Sparsity per output: the lowest scores of each output are pruned.

    This is the comparison group of Wanda (Sun et al. 2024, arXiv:2306.11695): all
    outputs of a layer keep the same number of weights.

    Attributes:
      sparsity: the fraction of an output's weights that is pruned, to the nearest
        weight.

    Raises:
      ValueError: not `0 < sparsity < 1`.

    >>> print(PerOutput(0.5))
    50% per output
    """

    sparsity: float

    def __post_init__(self) -> None:
        _check_sparsity(self.sparsity)

    def __str__(self) -> str:
        return f"{_percent(self.sparsity)} per output"

    @property
    def density(self) -> float:
        """The fraction of weights kept."""
        return 1 - self.sparsity


@dataclass(frozen=True)
class Block:
    """Block sparsity: the blocks with the lowest sums of scores are pruned.

    Attributes:
      shape: the size of a block along the group axis and along the last output axis.
      sparsity: the fraction of a leaf's blocks that is pruned, to the nearest block.

    Raises:
      TypeError: `shape` is not a pair of integers.
      ValueError: not `0 < sparsity < 1`, or a size below 1.

    >>> print(Block((4, 4), 0.75))
    75% of 4x4 blocks
    """

    shape: tuple[int, int]
    sparsity: float

    def __post_init__(self) -> None:
        match self.shape:
            case (int(height), int(width)):
                if min(height, width) < 1:
                    raise ValueError(
                        f"the sizes of a block must be at least 1, got {self.shape}"
                    )
                object.__setattr__(self, "shape", (height, width))
            case _:
                raise TypeError(
                    f"the shape of a block must be a pair of ints, got {self.shape}"
                )
        _check_sparsity(self.sparsity)

    def __str__(self) -> str:
        height, width = self.shape
        return f"{_percent(self.sparsity)} of {height}x{width} blocks"

    @property
    def density(self) -> float:
        """The fraction of weights kept."""
        return 1 - self.sparsity


@dataclass(frozen=True)
class Channel:
    """Channel sparsity: the channels with the lowest sums of scores are pruned.

    With magnitudes as scores this is the filter pruning of Li et al., "Pruning Filters
    for Efficient ConvNets" (2017, arXiv:1608.08710).

    Attributes:
      sparsity: the fraction of a leaf's channels that is pruned, to the nearest
        channel.

    Raises:
      ValueError: not `0 < sparsity < 1`.

    >>> print(Channel(0.5))
    50% of channels
    """

    sparsity: float

    def __post_init__(self) -> None:
        _check_sparsity(self.sparsity)

    def __str__(self) -> str:
        return f"{_percent(self.sparsity)} of channels"

    @property
    def density(self) -> float:
        """The fraction of weights kept."""
        return 1 - self.sparsity


#: A sparsity pattern of a leaf.
Pattern = NM | Unstructured | PerOutput | Block | Channel

#: A pattern in any spelling: a `Pattern`, `"2:4"`, `"2:4 sparsity"`, `(2, 4)` or
#: `"2:4 transposable"`.
PatternLike = Pattern | str | tuple[int, int]


def as_pattern(pattern: PatternLike) -> Pattern:
    """Returns a pattern from any of its spellings.

    Raises:
      ValueError: a string that is not a pattern, or numbers out of range.
      TypeError: neither a string, a pair of integers nor a pattern.
    """
    if isinstance(pattern, Pattern):
        return pattern
    if isinstance(pattern, str):
        match = re.fullmatch(
            r"\s*(\d+):(\d+)(\s+transposable)?(\s+sparsity)?\s*", pattern
        )
        if match is None:
            raise ValueError(
                f"unknown pattern {pattern!r}: write '2:4' or '2:4 sparsity' for "
                "2 weights kept in each group of 4, or '2:4 transposable'"
                f"{fraction_hint(pattern)}"
            )
        return NM(int(match[1]), int(match[2]), transposable=bool(match[3]))
    if isinstance(pattern, tuple) and len(pattern) == 2:
        return NM(*pattern)
    raise TypeError(
        "a pattern must be '2:4', '2:4 sparsity', (2, 4), NM(2, 4), Unstructured(0.9), "
        f"PerOutput(0.5), Block((4, 4), 0.9) or Channel(0.5), got {pattern!r}"
        f"{fraction_hint(pattern)}"
    )


def fraction_hint(pattern: object) -> str:
    """Returns how to write a fraction that is no pattern, such as 0.5 or '50%'."""
    match = re.fullmatch(r"\s*(\d*\.?\d+)\s*(%?)\s*", str(pattern))
    fraction = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < fraction < 1:
        return ""
    return f"; to prune that fraction of the weights, give Unstructured({fraction:g})"


def _check_sparsity(sparsity: float) -> None:
    if isinstance(sparsity, bool) or not 0 < sparsity < 1:
        raise ValueError(
            "sparsity, the fraction of weights that is pruned, must be more than 0 and "
            f"less than 1, got {sparsity!r}: a rule with None keeps leaves dense"
        )


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.4g}%"
