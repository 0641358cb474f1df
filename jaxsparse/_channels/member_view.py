"""The channels of a group in a leaf: read, written, reordered. All of it traceable."""

from types import ModuleType

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Int, Shaped

from jaxsparse._channels.groups import ChannelMember


#: An array of NumPy or JAX.
AnyArray = np.ndarray | Array


def read_member(
    leaf: Shaped[AnyArray, "..."], member: ChannelMember
) -> Shaped[AnyArray, "..."]:
    """Returns the view of a leaf that has the channels along `member.channel`.

    Args:
      leaf: an array of NumPy or JAX.
      member: where the channels lie in it.

    >>> member = ChannelMember("qkv", ((0, 2), (3, 9)), (2, 3, 2), 2, (1,), 1, "output")
    >>> read_member(np.arange(18).reshape(2, 9), member)[0]
    array([[3, 4],
           [5, 6],
           [7, 8]])
    """
    return leaf[_slices(member)].reshape(member.view)


def write_member(
    leaf: Shaped[AnyArray, "..."],
    member: ChannelMember,
    view: Shaped[AnyArray, "..."],
) -> Shaped[AnyArray, "..."]:
    """Returns the leaf with another view instead of the one that `read_member` gives.

    Args:
      leaf: an array of NumPy or JAX.
      member: where the channels lie in it.
      view: the new view. Where it has fewer channels, the leaf's axis gets shorter.
    """
    xp = _namespace(leaf)
    sizes = [stop - start for start, stop in member.slices]
    whole = [size == n for size, n in zip(sizes, leaf.shape, strict=True)]
    sizes[member.axis] = -1
    (start, stop), axis = member.slices[member.axis], member.axis
    part = xp.reshape(view, sizes)
    if not all(x for i, x in enumerate(whole) if i != axis):
        return _write(leaf, _slices(member), part)
    if whole[axis]:
        return part
    before = (slice(None),) * axis
    ends = leaf[(*before, slice(start))], leaf[(*before, slice(stop, None))]
    return xp.concatenate([ends[0], part, ends[1]], axis)


def take_channels(
    leaf: Shaped[AnyArray, "..."],
    member: ChannelMember,
    channels: Int[ArrayLike, "*index kept"],
) -> Shaped[AnyArray, "..."]:
    """Returns the leaf with other channels: new channel i is old channel `channels[i]`.

    Args:
      leaf: an array of NumPy or JAX.
      member: where the channels lie in it.
      channels: a permutation of the group, or the channels to keep. The axes before the
        last are those of the group's `index`.

    >>> member = ChannelMember("up", ((0, 1), (0, 3)), (1, 3), 1, (), 1, "output")
    >>> take_channels(np.array([[10, 20, 30]]), member, np.array([2, 0, 1]))
    array([[30, 10, 20]])
    >>> take_channels(np.array([[10, 20, 30]]), member, np.array([0, 2]))
    array([[10, 30]])
    """
    xp, view = _namespace(leaf), read_member(leaf, member)
    shape = np.shape(channels)
    axes = [*member.indices, member.channel]
    if len(axes) != len(shape) or shape[:-1] != tuple(view.shape[i] for i in axes[:-1]):
        wanted = (*(view.shape[i] for i in axes[:-1]), f"<= {view.shape[axes[-1]]}")
        raise ValueError(
            f"the channels of leaf {member.path!r} must have the shape {wanted}, "
            f"got {shape}"
        )
    sizes = [1] * view.ndim
    for axis, size in zip(axes, shape, strict=True):
        sizes[axis] = size
    # The axes of `channels`, in the order in which the view has them.
    ordered = xp.transpose(xp.asarray(channels), np.argsort(axes))
    chosen = xp.reshape(ordered, sizes)
    return write_member(
        leaf, member, xp.take_along_axis(view, chosen, axis=member.channel)
    )


def _write(leaf: AnyArray, where: tuple[slice, ...], part: AnyArray) -> AnyArray:
    """Returns the leaf with another part of the same shape."""
    if isinstance(leaf, np.ndarray):
        leaf = leaf.copy()
        leaf[where] = part
        return leaf
    return leaf.at[where].set(part)


def _slices(member: ChannelMember) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in member.slices)


def _namespace(leaf: AnyArray) -> ModuleType:
    return np if isinstance(leaf, np.ndarray) else jnp
