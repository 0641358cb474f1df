"""How much each channel matters: the scores of its weights, added up."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxsparse._calibration import LeafStatistics, fill_starved
from jaxsparse._channels import ChannelGroup, ChannelMember, read_member
from jaxsparse._patterns import wide_float
from jaxsparse._sharding import replicate
from jaxsparse._trees import PyTree, flatten


#: Scores by name, as a tree like the parameters, or as a function of a group.
Scores = Literal["magnitude", "energy"] | Callable[[ChannelGroup], ArrayLike] | PyTree

_Scores = Float[np.ndarray, "*index channel"]


def channel_scores(
    group: ChannelGroup,
    leaves: Mapping[str, Any],
    scores: Scores,
    statistics: Mapping[str, LeafStatistics],
) -> _Scores:
    """Returns the score of each channel of a group, of shape `[*index, size]`.

    Args:
      group: the group.
      leaves: the parameters by path.
      scores: see `shrink_params`.
      statistics: the statistics of leaves by path.

    Raises:
      ValueError: scores are missing, have another shape or are not finite.
    """
    if isinstance(scores, str) and scores == "magnitude":
        total = _magnitude(group, leaves)
    elif isinstance(scores, str) and scores == "energy":
        total = _energy(group, leaves, statistics)
    elif callable(scores):
        total = scores(group)
    else:
        total = _summed(group, leaves, flatten(scores).by_path)
    checked = np.asarray(total, np.float64)
    expected = (*group.index, group.size)
    if checked.shape != expected or not np.isfinite(checked).all():
        problem = (
            "are not finite"
            if checked.shape == expected
            else (
                f"have shape {checked.shape}, and there is one for each of {expected}"
            )
        )
        raise ValueError(
            f"the scores of the channels of leaf {group.members[0].path!r} along axis "
            f"{group.members[0].axis} {problem}"
        )
    return checked


def _magnitude(group: ChannelGroup, leaves: Mapping[str, Any]) -> _Scores:
    """Squared norms of a channel's weights, each relative to the mean of its leaf."""
    total = np.zeros((*group.index, group.size))
    for member in group.members:
        if member.role != "elementwise":
            sums = _channel_sums(_square(leaves[member.path]), member)
            total += sums / max(sums.mean(), np.finfo(np.float64).tiny)
    return total


def _energy(
    group: ChannelGroup,
    leaves: Mapping[str, Any],
    statistics: Mapping[str, LeafStatistics],
) -> _Scores:
    """The squared norms of what a channel adds to the outputs of its consumers."""
    measured = [x for x in group.members if x.path in statistics]
    consumers = [x for x in measured if x.role == "input"] or measured
    if not consumers:
        raise ValueError(
            f"there are no statistics of what takes the {group.size} channels of leaf "
            f"{group.members[0].path!r}: score them by 'magnitude', or collect the "
            f"statistics of {', '.join(repr(x.path) for x in group.members)}"
        )
    total = np.zeros((*group.index, group.size))
    for member in consumers:
        leaf = statistics[member.path]
        matrices = _square(leaf.scaled_matrices(jnp.asarray(leaves[member.path])))
        tokens = jnp.maximum(leaf.tokens, 1)  # starved problems too rank by magnitude
        weight = tokens[:, None] * fill_starved(leaf).mean_square
        energy = leaf.columns.from_matrices(matrices * weight[:, :, None])
        total += _channel_sums(energy, member)
    return total


def _summed(
    group: ChannelGroup, leaves: Mapping[str, Any], scores: Mapping[str, Any]
) -> _Scores:
    """The sum of the scores of a channel's weights."""
    total = np.zeros((*group.index, group.size))
    for member in group.members:
        shape = leaves[member.path].shape
        score: Any = scores.get(member.path)
        if getattr(score, "shape", None) != shape:
            raise ValueError(
                f"leaf {member.path!r} of shape {shape} needs scores of the same "
                f"shape, got {getattr(score, 'shape', score)}"
            )
        total += _channel_sums(score, member)
    return total


def _square(x: np.ndarray | Array) -> Array:
    return jnp.square(jnp.asarray(x, wide_float(x.dtype)))


def _channel_sums(weights: np.ndarray | Array, member: ChannelMember) -> _Scores:
    """Sums a leaf over all but a group's channels and what they are separate for."""
    view = read_member(replicate(jnp.asarray(weights)), member)
    kept = (*member.indices, member.channel)
    others = tuple(axis for axis in range(view.ndim) if axis not in kept)
    sums = np.asarray(view.sum(others), np.float64)
    return sums.transpose(np.argsort(np.argsort(kept)))
