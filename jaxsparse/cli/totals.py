"""The last row of a table and the sentence below it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax

from jaxsparse._compressed import POSITION_BITS, compressed_shapes
from jaxsparse._patterns import NM
from jaxsparse._plans import LeafPlan
from jaxsparse._trees import bytes_text, is_numeric, percent_text
from jaxsparse.cli.leaves import Leaves


@dataclass(frozen=True)
class Totals:
    """The numbers of all weights of a file.

    Attributes:
      weights: the number of weights. Values that are no numbers, as of masks, are none.
      zeros: the number of weights that are zero.
    """

    weights: int
    zeros: int

    @property
    def sparsity(self) -> str:
        """The share of zeros as text."""
        return percent_text(self.zeros / max(self.weights, 1))

    def sentence(self, subject: str) -> str:
        """Returns the sentence below a table.

        >>> Totals(85_001, 11_305).sentence("pruned 3 of 47 tensors")
        'pruned 3 of 47 tensors: 13.3 % of 85,001 weights are zero'
        """
        return f"{subject}: {self.sparsity} of {self.weights:,} weights are zero"


def totals(leaves: Leaves, zeros: Mapping[str, int]) -> Totals:
    """Returns the totals of a file, given the number of zeros of each tensor."""
    sizes = {
        name: math.prod(spec.shape)
        for name, spec in leaves.specs.items()
        if is_numeric(spec)
    }
    return Totals(sum(sizes.values()), sum(zeros[name] for name in sizes))


def stored_text(leaves: Leaves) -> str:
    """Returns the bytes of a file as text, as a part of those with all zeros."""
    stored = 0
    for spec in leaves.specs.values():
        arrays = jax.tree.leaves(spec)  # several, if it is compressed
        stored += sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)
    return bytes_text(stored, sum(leaves.bytes_of.values()))


def compressed_bytes(leaf: LeafPlan, itemsize: int) -> int:
    """Returns the bytes of a tensor if it is compressed as planned.

    >>> compressed_bytes(LeafPlan("w", (8, 16), NM(2, 4), axis=1), 2)  # 9/16
    144
    """
    dense = math.prod(leaf.shape or ()) * itemsize
    if not isinstance(leaf.pattern, NM) or leaf.pattern.m not in POSITION_BITS:
        return dense
    assert leaf.shape is not None
    assert leaf.axis is not None
    values, indices = compressed_shapes(leaf.shape, leaf.pattern, leaf.axis)
    return math.prod(values) * itemsize + math.prod(indices)
