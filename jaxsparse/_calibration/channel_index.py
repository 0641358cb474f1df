"""Where the places of a product's operand lie in the parameter that it shows."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsparse._calibration.matrices import LayerMatrices
from jaxsparse._trace import (
    IndexedAxis,
    Path,
    ViewAxis,
)


class ChannelIndex(NamedTuple):
    """The problem and the input channel of each place of an operand.

    Numbers, or traced ones where a loop's step decides.

    Attributes:
      problem: `[problem]`, of each place of the product's batch axes.
      channel: `[problem, input]`, of each place of the axes contracted, there; behind
        the last channel for a place that is not the parameter's.
    """

    problem: Any
    channel: Any


def channel_index(
    batch: Sequence[tuple[ViewAxis, int]],
    contracted: Sequence[tuple[ViewAxis, int]],
    indexed: Sequence[IndexedAxis],
    steps: Mapping[Path, Any],
    columns: LayerMatrices,
) -> ChannelIndex:
    """Finds the places.

    Args:
      batch: what each batch axis of the operand shows, and its size.
      contracted: the same of each contracted axis.
      indexed: the axes of which one place was taken.
      steps: the number of the step of each scan around.
      columns: what the parameter's axes are to be.
    """
    known, there = _grid([*batch, *contracted])
    shape = [size for _, size in [*batch, *contracted]]
    nowhere = np.zeros(shape, np.int32)
    places = [nowhere + known.get(i, 0) for i in range(len(columns.shape))]
    for dim, by in indexed:
        for axis, place in _digits(dim, 0 if by is None else steps[by]).items():
            places[axis] = places[axis] + place
    ravel = lambda axes: _ravel([(places[i], columns.shape[i]) for i in axes], nowhere)
    problem, channel = ravel(columns.batch), ravel(columns.inputs)
    if not np.all(there):
        outside = np.int32(columns.channels)
        where = np.where if isinstance(channel, np.ndarray) else jnp.where
        channel = where(there, channel, outside)
    count = int(np.prod(shape[: len(batch)], dtype=int))
    return ChannelIndex(problem.reshape(count, -1)[:, 0], channel.reshape(count, -1))


def _grid(axes: Sequence[tuple[ViewAxis, int]]) -> tuple[dict[int, Any], Any]:
    """Each leaf axis's places over a grid of an operand's axes, and which are there."""
    places: dict[int, Any] = {}
    there = np.ones([size for _, size in axes], bool)
    for k, (dim, size) in enumerate(axes):
        along = [size if i == k else 1 for i in range(len(axes))]
        number = np.arange(size, dtype=np.int32) - np.int32(dim.offset)
        inside = (number >= 0) & (number < dim.covered)
        there = there & inside.reshape(along)
        for axis, place in _digits(dim, np.where(inside, number, 0)).items():
            places[axis] = places.get(axis, 0) + place.reshape(along)
    return places, there


def _digits(dim: ViewAxis, number: Any) -> dict[int, Any]:
    """The place along each leaf axis of the numbered place of an axis made of them."""
    places: dict[int, Any] = {}
    for factor in reversed(dim.pieces):
        digit = number % np.int32(factor.size)
        number = number // np.int32(factor.size)
        if factor.axis >= 0:
            place = np.int32(factor.start) + np.int32(factor.stride) * digit
            places[factor.axis] = places.get(factor.axis, 0) + place
    return places


def _ravel(places: Sequence[tuple[Any, int]], start: Any) -> Any:
    """The flat number of a place, over axes of some sizes."""
    flat = start
    for place, size in places:
        flat = flat * np.int32(size) + place
    return flat
