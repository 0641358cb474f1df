"""Which problem and which input of a leaf each element of an operand belongs to.

The operand of a product may show a leaf transposed, merged, in part or indexed by a
loop. The sums over tokens are kept in the leaf's own order of problems and inputs.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsparse._calibration.matrices import LayerMatrices
from jaxsparse._trace import IndexedAxis, Path, ViewAxis


class ChannelIndex(NamedTuple):
    """Indices into the problems and the inputs of a leaf.

    They are NumPy arrays, or traced arrays if they depend on the step of a loop.

    Attributes:
      problem: `[set]`, int32: the problem of each element of the product's batch axes.
      input: `[set, input]`, int32: the input of each element of its contracted axes;
        the number of inputs, which is out of bounds, for elements not of this leaf.
    """

    problem: Any
    input: Any


def channel_index(
    batch: Sequence[tuple[ViewAxis, int]],
    contracted: Sequence[tuple[ViewAxis, int]],
    indexed: Sequence[IndexedAxis],
    steps: Mapping[Path, Any],
    matrices: LayerMatrices,
) -> ChannelIndex:
    """Returns the problems and inputs that the axes of an operand enumerate.

    Args:
      batch: the view and the size of each batch axis of the operand.
      contracted: the view and the size of each contracted axis.
      indexed: the axes of which the operand shows a single index.
      steps: the current step of each enclosing scan, by its path.
      matrices: the problems, inputs and outputs of the leaf.
    """
    axes = [*batch, *contracted]
    sizes = [size for _, size in axes]
    zeros = np.zeros(sizes, np.int32)
    grid, is_leaf = _index_grid(axes)
    indices = [zeros + grid.get(axis, 0) for axis in range(len(matrices.shape))]
    for view_axis, scan in indexed:
        step = 0 if scan is None else steps[scan]
        for axis, index in unravel(view_axis, step).items():
            indices[axis] = indices[axis] + index

    problem = _ravel(indices, matrices.batch, matrices.shape, zeros)
    channel = _ravel(indices, matrices.inputs, matrices.shape, zeros)
    if not np.all(is_leaf):
        out_of_bounds = np.int32(matrices.inputs_per_problem)
        where = np.where if isinstance(channel, np.ndarray) else jnp.where
        channel = where(is_leaf, channel, out_of_bounds)
    sets = int(np.prod(sizes[: len(batch)], dtype=int))
    return ChannelIndex(problem.reshape(sets, -1)[:, 0], channel.reshape(sets, -1))


def _index_grid(axes: Sequence[tuple[ViewAxis, int]]) -> tuple[dict[int, Any], Any]:
    """Returns the index along each leaf axis over the grid of an operand's axes.

    The second result is False for elements of the grid that are not of the leaf.
    """
    indices: dict[int, Any] = {}
    is_leaf = np.ones([size for _, size in axes], bool)
    for k, (view_axis, size) in enumerate(axes):
        along = [size if i == k else 1 for i in range(len(axes))]
        element = np.arange(size, dtype=np.int32) - np.int32(view_axis.offset)
        inside = (element >= 0) & (element < view_axis.covered)
        is_leaf = is_leaf & inside.reshape(along)
        for axis, index in unravel(view_axis, np.where(inside, element, 0)).items():
            indices[axis] = indices.get(axis, 0) + index.reshape(along)
    return indices, is_leaf


def unravel(view_axis: ViewAxis, element: Any) -> dict[int, Any]:
    """Returns the index along each leaf axis of elements of an axis made of them."""
    indices: dict[int, Any] = {}
    for piece in reversed(view_axis.pieces):
        digit = element % np.int32(piece.size)
        element = element // np.int32(piece.size)
        if piece.axis >= 0:
            index = np.int32(piece.start) + np.int32(piece.stride) * digit
            indices[piece.axis] = indices.get(piece.axis, 0) + index
    return indices


def _ravel(
    indices: Sequence[Any], axes: Sequence[int], shape: Sequence[int], zeros: Any
) -> Any:
    """Returns the flat index over some axes, from the index along each axis."""
    flat = zeros
    for axis in axes:
        flat = flat * np.int32(shape[axis]) + indices[axis]
    return flat
