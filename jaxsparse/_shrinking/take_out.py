"""One leaf without some of its channels, and its old shape back with zeros.

What is kept along an axis may differ between the elements of other axes: each layer of
a stack keeps channels of its own. So it is a mask, which broadcasts to the leaf, and
has as many kept channels everywhere.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from jaxsparse._channels import ChannelMember
from jaxsparse._sharding import replicate


class Cut(NamedTuple):
    """Channels that are taken out along one axis.

    Attributes:
      axis: the axis.
      kept: True for what is kept, of a shape that broadcasts to the leaf's.
    """

    axis: int
    kept: Bool[np.ndarray, "..."]

    @property
    def count(self) -> int:
        """The size that the axis has without them."""
        return int(self.kept.sum(self.axis).flat[0])

    @property
    def index(self) -> Int[np.ndarray, "..."]:
        """The old index of each channel that is kept."""
        order = np.argsort(~self.kept, axis=self.axis, stable=True)
        return order.take(range(self.count), self.axis)

    @property
    def rank(self) -> Int[np.ndarray, "..."]:
        """The new index of each channel that is kept; any index for the others."""
        return np.maximum(np.cumsum(self.kept, axis=self.axis) - 1, 0)


def kept_along(
    shape: Sequence[int], members: Iterable[tuple[ChannelMember, np.ndarray]]
) -> dict[int, Bool[np.ndarray, "..."]]:
    """Returns for each axis that loses channels what is kept along it.

    Args:
      shape: the shape of the leaf.
      members: the members of groups in this leaf, each with the channels that its group
        keeps: bool, of shape `[*index, size]`.
    """
    kept: dict[int, np.ndarray] = {}
    for member, channels in members:
        mask = _leaf_mask(shape, member, channels)
        kept[member.axis] = mask & kept.get(member.axis, np.True_)
    return kept


def cuts_of(kept: Mapping[int, np.ndarray]) -> list[Cut]:
    """Returns the cuts along each axis, one after the other.

    The second is one of a leaf that has lost the channels of the first, and so on.
    """
    cuts: list[Cut] = []
    for axis in sorted(kept):
        mask = kept[axis]
        for cut in cuts:
            mask = _take(mask, cut.index, cut.axis)
        cuts.append(Cut(axis, mask))
    return cuts


def take_out(leaf: Any, cuts: Iterable[Cut]) -> Any:
    """Returns the leaf without the channels that are not kept."""
    for cut in cuts:
        leaf = _take(leaf, cut.index, cut.axis)
    return leaf


def put_back(leaf: Any, cuts: Sequence[Cut]) -> Any:
    """Returns the leaf in its old shape, with zeros where channels were taken out."""
    for cut in reversed(cuts):
        grown = _take(leaf, cut.rank, cut.axis)
        zero = np.zeros((), leaf.dtype)
        where = np.where if isinstance(leaf, np.ndarray) else jnp.where
        leaf = where(cut.kept, grown, zero)
    return leaf


def _take(x: Any, index: np.ndarray, axis: int) -> Any:
    """Takes along an axis, unless `x` is of size one there and broadcasts."""
    if isinstance(x, np.ndarray):
        if x.shape[axis] == 1:
            return x
        take, along = np.take, np.take_along_axis
    else:
        x = replicate(x)
        take, along = jnp.take, jnp.take_along_axis
    if index.size == index.shape[axis]:
        return take(x, index.ravel(), axis=axis)
    return along(x, index, axis=axis)


def _leaf_mask(
    shape: Sequence[int], member: ChannelMember, channels: np.ndarray
) -> Bool[np.ndarray, "..."]:
    """Returns what a member keeps, of a shape that broadcasts to its leaf's."""
    order = (*member.indices, member.channel)
    sizes = [size if i in order else 1 for i, size in enumerate(member.view)]
    mask = channels.transpose(np.argsort(order)).reshape(sizes)
    part = tuple(slice(*bounds) for bounds in member.slices)
    whole = np.ones(shape, np.bool_)
    whole[part] = np.broadcast_to(mask, member.view).reshape(whole[part].shape)
    for axis in range(whole.ndim):
        first = whole.take([0], axis)
        whole = first if (whole == first).all() else whole
    return whole
