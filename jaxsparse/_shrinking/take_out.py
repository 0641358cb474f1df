"""One leaf without some of its channels, and its old shape back with zeros.

What is kept along an axis may differ between the elements of other axes, as each layer
of a stack keeps channels of its own. So the channels have an order for each of these
elements: those that are kept first, as many everywhere, and then those that go.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from jaxsparse._channels import ChannelMember
from jaxsparse._sharding import device_put_resized, replicate


#: What the positions along an axis are sorted by, of a shape that broadcasts to the
#: leaf's. Positions that go have at least the size of the axis.
Order = Int[np.ndarray, "..."]


@dataclass(frozen=True)
class Cut:
    """Channels that are taken out along one axis.

    Attributes:
      axis: the axis.
      order: the order of its positions.
    """

    axis: int
    order: Order

    @property
    def kept(self) -> Bool[np.ndarray, "..."]:
        """Whether each position is kept."""
        return is_kept(self.order, self.axis)

    @property
    def count(self) -> int:
        """The new size of the axis."""
        return int(self.kept.sum(self.axis).flat[0])

    @property
    def index(self) -> Int[np.ndarray, "..."]:
        """The old position of each new one."""
        return np.argsort(self.order, self.axis).take(range(self.count), self.axis)

    @property
    def new_position(self) -> Int[np.ndarray, "..."]:
        """The new position of each old one; any for those that go."""
        rank = np.argsort(np.argsort(self.order, self.axis), self.axis)
        return np.minimum(rank, self.count - 1)


def is_kept(order: Order, axis: int) -> Bool[np.ndarray, "..."]:
    """Returns whether each position along an axis is kept."""
    return order < order.shape[axis]


def orders_along(
    shape: Sequence[int], members: Sequence[tuple[ChannelMember, np.ndarray]]
) -> dict[int, Order]:
    """Returns the order along each axis of a leaf that loses channels.

    Args:
      shape: the shape of the leaf.
      members: the members of groups in this leaf, each with the channels that its group
        keeps: bool, of shape `[*index, size]`.

    Raises:
      ValueError: the channels of two groups are separate for each other, so that what
        both keep is not an array.
    """
    for (one, _), (other, _) in combinations(members, 2):
        is_same_view = (one.slices, one.view) == (other.slices, other.view)
        is_mutual = one.channel in other.indices and other.channel in one.indices
        if is_same_view and is_mutual:
            raise ValueError(
                f"leaf {one.path!r} would lose channels of two groups along axes "
                f"{one.axis} and {other.axis} that are separate for each other: shrink "
                "one of the groups, and the other in the result"
            )
    orders: dict[int, np.ndarray] = {}
    for member, channels in members:
        axis = member.axis
        along = [shape[axis] if i == axis else 1 for i in range(len(shape))]
        order = orders.get(axis, np.arange(shape[axis]).reshape(along))
        orders[axis] = order + _shift(shape, member, channels)
    return orders


def cuts_of(orders: Mapping[int, Order]) -> list[Cut]:
    """Returns the cuts along each axis of a leaf, one after the other.

    The second is one of a leaf that has lost the channels of the first, and so on.
    """
    cuts: list[Cut] = []
    for axis in sorted(orders):
        order = orders[axis]
        for cut in cuts:
            if order.shape[cut.axis] > 1:
                order = _take(order, cut.index, cut.axis)
        cuts.append(Cut(axis, order))
    return cuts


def take_out(leaf: Any, cuts: Iterable[Cut]) -> Any:
    """Returns the leaf without the channels that are not kept, sharded as it is."""
    smaller = leaf
    for cut in cuts:
        smaller = _take(smaller, cut.index, cut.axis)
    return device_put_resized(smaller, leaf)


def put_back(leaf: Any, cuts: Sequence[Cut]) -> Any:
    """Returns the leaf in its old shape, with zeros where channels were taken out."""
    where = np.where if isinstance(leaf, np.ndarray) else jnp.where
    grown = leaf
    for cut in reversed(cuts):
        taken = _take(grown, cut.new_position, cut.axis)
        grown = where(cut.kept, taken, np.zeros((), leaf.dtype))
    return device_put_resized(grown, leaf)


def _take(x: Any, index: np.ndarray, axis: int) -> Any:
    """Takes along an axis, by one index or by one for each element of other axes."""
    numpy = isinstance(x, np.ndarray)
    x = x if numpy else replicate(x)
    if index.size == index.shape[axis]:
        return (np if numpy else jnp).take(x, index.ravel(), axis=axis)
    return (np if numpy else jnp).take_along_axis(x, index, axis=axis)


def _shift(
    shape: Sequence[int], member: ChannelMember, channels: np.ndarray
) -> Int[np.ndarray, "..."]:
    """Returns what a member adds to the order along its axis.

    A channel that is kept moves down by those before it that go.
    """
    sizes = [stop - start for start, stop in member.slices]
    moves = np.cumsum(channels, -1) - 1 - np.arange(channels.shape[-1])
    shift = np.where(channels, member.stride * moves, shape[member.axis])
    factors = (*member.indices, member.channel)
    axis_of = _axes_of_factors(member.view, sizes)
    differs = {axis_of[factor] for factor in factors}
    # Elsewhere the size is 1, which broadcasts: most leaves are large.
    own = [n if i in factors else 1 for i, n in enumerate(member.view)]
    spread = [n if axis_of[i] in differs else 1 for i, n in enumerate(member.view)]
    merged = [n if i in differs else 1 for i, n in enumerate(sizes)]
    shift = shift.transpose(np.argsort(factors)).reshape(own)
    shift = np.broadcast_to(shift, spread).reshape(merged)
    is_part = [(0, n) != x for n, x in zip(shape, member.slices, strict=True)]
    whole = np.zeros(
        [n if is_part[i] or i in differs else 1 for i, n in enumerate(shape)],
        np.int64,
    )
    part = [
        slice(*bounds) if is_part[i] else slice(None)
        for i, bounds in enumerate(member.slices)
    ]
    whole[tuple(part)] = shift
    return whole


def _axes_of_factors(view: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Returns the axis that each factor of a view is a part of.

    Factors of size 1 may be said to be of any axis.

    >>> _axes_of_factors((6, 2, 4), (6, 8))
    [0, 1, 1]
    """
    after = [math.prod(sizes[i:]) for i in range(len(sizes))]
    return [
        max(axis for axis, size in enumerate(after) if size >= math.prod(view[i:]))
        for i in range(len(view))
    ]
