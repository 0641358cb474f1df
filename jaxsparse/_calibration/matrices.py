"""Weights as a stack of matrices: inputs down, outputs across.

What calibration needs of a layer is one product `x @ w` for each of its problems: the
experts, the layers of a stack, the feature groups of a convolution.
"""

import math
from dataclasses import dataclass

from jaxtyping import Array, Shaped

from jaxsparse._sharding import replicate


@dataclass(frozen=True)
class LayerMatrices:
    """Which axes of a leaf are inputs, and which make problems of their own.

    Attributes:
      shape: the leaf's shape.
      inputs: the axes that are summed over, spatial ones of a convolution too, the
        outermost first; n:m groups lie along the last.
      batch: the axes along which there are separate products.
      groups: the feature groups of a convolution, into which its outputs are divided.
    """

    shape: tuple[int, ...]
    inputs: tuple[int, ...]
    batch: tuple[int, ...] = ()
    groups: int = 1

    @property
    def outputs(self) -> tuple[int, ...]:
        """All other axes."""
        known = self.inputs + self.batch
        return tuple(i for i in range(len(self.shape)) if i not in known)

    @property
    def channels(self) -> int:
        """How many inputs a product has."""
        return math.prod(self.shape[axis] for axis in self.inputs)

    @property
    def problems(self) -> int:
        """How many separate products there are."""
        return self.groups * math.prod(self.shape[axis] for axis in self.batch)

    def split(
        self, leaf: Shaped[Array, "..."]
    ) -> Shaped[Array, "problem input output"]:
        """The leaf as matrices, one for each problem.

        What is sharded over explicit axes of a mesh is gathered.
        """
        moved = replicate(leaf).transpose(self.batch + self.inputs + self.outputs)
        grouped = moved.reshape(-1, self.channels, self.groups, self._width)
        matrices = grouped.transpose(0, 2, 1, 3)
        return matrices.reshape(self.problems, self.channels, self._width)

    def join(self, matrices: Shaped[Array, "problem input output"]) -> Array:
        """The leaf again."""
        grouped = matrices.reshape(-1, self.groups, self.channels, self._width)
        order = self.batch + self.inputs + self.outputs
        moved = grouped.transpose(0, 2, 1, 3).reshape([self.shape[i] for i in order])
        return moved.transpose([order.index(i) for i in range(len(order))])

    @property
    def _width(self) -> int:
        outputs = math.prod(self.shape[axis] for axis in self.outputs)
        return outputs // self.groups
