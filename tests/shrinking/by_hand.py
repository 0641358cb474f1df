"""Groups of channels written by hand, and an MLP in float64 NumPy."""

import numpy as np

from jaxsparse._channels import ChannelGroup, ChannelMember


def member(path, shape, axis, role, *, part=None, view=None, channel=None, indices=()):
    """A member whose channels are a whole axis of a leaf, or a part or a factor of it.

    `part` is where they lie along the axis, `view` the factors of all axes, `channel`
    the axis of the view, if it is not `axis`.
    """
    slices = [(0, size) for size in shape]
    slices[axis] = part or slices[axis]
    view = view or tuple(stop - start for start, stop in slices)
    channel = axis if channel is None else channel
    return ChannelMember(path, tuple(slices), tuple(view), channel, indices, axis, role)


def group(size, *members, index=(), fixed="", kept=""):
    return ChannelGroup(size, index, members, fixed, kept)


def second_moment(x):
    """The mean product of every two inputs in float64."""
    tokens = np.asarray(x, np.float64).reshape(-1, np.shape(x)[-1])
    return tokens.T @ tokens / len(tokens)


def ridge(weight, moment, kept, shrinkage):
    """The weights of kept inputs, from the normal equations in float64.

    Minimises the mean square of `x @ weight - x[kept] @ v` plus `shrinkage / (1 -
    shrinkage)` times the mean squares times the squares of `v - weight[kept]`.
    """
    weight = np.asarray(weight, np.float64)
    penalty = shrinkage / (1 - shrinkage) * np.diag(np.diag(moment)[kept])
    left = moment[np.ix_(kept, kept)] + penalty
    right = moment[kept] @ weight + penalty @ weight[kept]
    return np.linalg.solve(left, right)
