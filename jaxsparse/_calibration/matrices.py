"""Weights as a stack of matrices, `[problem, input, output]`.

Calibration sees a layer as one product `x @ w` for each of its problems: the experts,
the layers of a stack, or the feature groups of a convolution.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Shaped

from jaxsparse._sharding import replicate


@dataclass(frozen=True)
class LayerMatrices:
    """How the axes of a leaf map to problems, inputs and outputs.

    Attributes:
      shape: the leaf's shape.
      inputs: the contracted axes, including the spatial axes of a convolution. The last
        one is the n:m group axis; the others are in ascending order.
      batch: the axes along which there are separate products.
      groups: the number of feature groups of a convolution. Its output axis is divided
        into that many problems.
      scaled: whether the leaf is multiplied by factors before its product.
    """

    shape: tuple[int, ...]
    inputs: tuple[int, ...]
    batch: tuple[int, ...] = ()
    groups: int = 1
    scaled: bool = False

    @property
    def outputs(self) -> tuple[int, ...]:
        """All other axes."""
        others = self.inputs + self.batch
        return tuple(i for i in range(len(self.shape)) if i not in others)

    @property
    def inputs_per_problem(self) -> int:
        """The number of inputs of each matrix."""
        return math.prod(self.shape[axis] for axis in self.inputs)

    @property
    def outputs_per_problem(self) -> int:
        """The number of outputs of each matrix."""
        outputs = math.prod(self.shape[axis] for axis in self.outputs)
        return outputs // self.groups

    @property
    def num_problems(self) -> int:
        """The number of matrices."""
        return self.groups * math.prod(self.shape[axis] for axis in self.batch)

    def to_matrices(
        self, leaf: Shaped[Array, "..."]
    ) -> Shaped[Array, "problem input output"]:
        """Returns the leaf as a stack of matrices, one for each problem.

        A leaf sharded over explicit mesh axes is gathered.
        """
        inputs, outputs = self.inputs_per_problem, self.outputs_per_problem
        transposed = replicate(leaf).transpose(self.batch + self.inputs + self.outputs)
        grouped = transposed.reshape(-1, inputs, self.groups, outputs)
        matrices = grouped.transpose(0, 2, 1, 3)
        return matrices.reshape(self.num_problems, inputs, outputs)

    def from_matrices(self, matrices: Shaped[Array, "problem input output"]) -> Array:
        """Returns the leaf whose matrices are given; the inverse of `to_matrices`."""
        inputs, outputs = self.inputs_per_problem, self.outputs_per_problem
        grouped = matrices.reshape(-1, self.groups, inputs, outputs)
        order = self.batch + self.inputs + self.outputs
        sizes = [self.shape[axis] for axis in order]
        transposed = grouped.transpose(0, 2, 1, 3).reshape(sizes)
        return transposed.transpose([order.index(i) for i in range(len(order))])

    def spread_inputs(self, values: Shaped[Array, "problem input"]) -> Array:
        """Returns the value of the input of each weight, in the shape of the leaf."""
        shape = (*values.shape, self.outputs_per_problem)
        return self.from_matrices(jnp.broadcast_to(values[:, :, None], shape))
