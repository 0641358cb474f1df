"""The operands of a `dot_general` as rows and matrices."""

import math
from typing import Any, NamedTuple

import jax

from jaxsparse._compressed.compressed_array import Compressed
from jaxsparse._compressed.lax_ops import repeat_scales, reshape, transpose


class Operands(NamedTuple):
    """The operands of a `dot_general`, their contracted axes and their batch axes."""

    weight: Any
    x: Any
    weight_axes: tuple[int, ...]
    x_axes: tuple[int, ...]
    weight_batch: tuple[int, ...]
    x_batch: tuple[int, ...]

    def rows(self) -> int:
        """Returns by how many rows each weight of a stack is multiplied."""
        inputs = [self.weight.shape[i] for i in (*self.weight_axes, *self.weight_batch)]
        return self.x.size // max(math.prod(inputs), 1)


def is_matrix_product(operands: Operands) -> bool:
    """Returns whether the weight is a matrix with one contracted axis."""
    weight, _, weight_axes, _, batch, _ = operands
    return weight.ndim == 2 and len(weight_axes) == 1 and not batch


def move_group_axis_last(operands: Operands) -> Operands:
    """Returns the operands with the group axis last among the contracted axes."""
    weight, weight_axes = operands.weight, operands.weight_axes
    i = weight_axes.index(weight.axis + weight.ndim)

    def move(axes: tuple[int, ...]) -> tuple[int, ...]:
        return (*axes[:i], *axes[i + 1 :], axes[i])

    return operands._replace(
        weight_axes=move(weight_axes), x_axes=move(operands.x_axes)
    )


def stack_axes(operands: Operands) -> tuple[int, ...]:
    """Returns the output axes that the weight has before its contracted axes.

    Few rows, as of heads or of experts that have the same rows, are better copied for
    each matrix of a stack than the weight transposed: both are written and read again.
    """
    weight, x, axes, _, batch, _ = operands
    stack = tuple(i for i in range(min(axes)) if i not in batch)
    taken = {*stack, *axes, *batch}
    out = math.prod(n for i, n in enumerate(weight.shape) if i not in taken)
    if not all(isinstance(size, int) for size in (*x.shape, *weight.shape)):
        return ()
    return stack if out % 16 == 0 and 2 * operands.rows() <= out else ()


def as_matrix(operands: Operands, stack: tuple[int, ...]) -> Compressed | None:
    """Returns the weight as `[k, out]`, its contracted axes merged into `k`.

    Its batch axes are the first, then those of a stack.
    """
    weight, _, axes, _, batch, _ = operands
    leading = (*batch, *stack)
    first = (*leading, *axes)
    permutation = (*first, *(i for i in range(weight.ndim) if i not in first))
    if permutation != tuple(range(weight.ndim)):
        weight = transpose(weight, permutation)
    if is_matrix_product(operands):
        return weight

    def merge(weight: Compressed) -> Compressed | None:
        k = math.prod(weight.shape[: len(axes)])
        return reshape(weight, (k, math.prod(weight.shape[len(axes) :])))

    for _ in leading:
        merge = jax.vmap(merge)
    return merge(repeat_scales(weight, len(leading)))
