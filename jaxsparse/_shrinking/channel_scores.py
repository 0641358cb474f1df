"""How much each channel matters: the scores of its weights, added up."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import jax
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
    if isinstance(scores, str):
        total = _by_name(group, leaves, scores, statistics)
    elif callable(scores):
        total = scores(group)
    else:
        total = _summed(group, leaves, flatten(scores).by_path)
    checked = np.asarray(total, np.float64)
    expected = (*group.index, group.size)
    first = group.members[0]
    if checked.shape != expected or not np.isfinite(checked).all():
        raise ValueError(
            f"the channels of leaf {first.path!r} along axis {first.axis} need finite "
            f"scores of shape {expected}, got shape {checked.shape} and "
            f"{np.count_nonzero(~np.isfinite(checked))} that are not finite"
        )
    return checked


def _by_name(
    group: ChannelGroup,
    leaves: Mapping[str, Any],
    name: str,
    statistics: Mapping[str, LeafStatistics],
) -> _Scores:
    match name:
        case "magnitude":
            return _magnitude(group, leaves)
        case "energy":
            return _energy(group, leaves, statistics)
    raise ValueError(
        "scores must be 'magnitude' or 'energy', a tree of scores like params, or a "
        f"function of a channel group, got {name!r}"
    )


def _magnitude(group: ChannelGroup, leaves: Mapping[str, Any]) -> _Scores:
    """The squared norms of a channel's weights, relative to the mean of each leaf."""
    total = np.zeros((*group.index, group.size))
    for member in group.members:
        if member.role != "elementwise":
            total += _relative(_sums(leaves[member.path], member, square=True))
    return total


def _energy(
    group: ChannelGroup,
    leaves: Mapping[str, Any],
    statistics: Mapping[str, LeafStatistics],
) -> _Scores:
    """The squared norms of what a channel adds to outputs, as `_magnitude`.

    These are the outputs of the layers that take the channel in. If there are none,
    they are those of its own layers, as of an expert, or the channel itself.
    """
    measured = [x for x in group.members if x.path in statistics]
    for role in ("input", "elementwise", "output"):
        if members := [x for x in measured if x.role == role]:
            break
    else:
        consumers = [x for x in group.members if x.role == "input"] or group.members
        names = ", ".join(dict.fromkeys(repr(x.path) for x in consumers))
        raise ValueError(
            f"the energy of {group.size} channels needs the statistics of {names}: "
            "pass statistics=collect_statistics(...), or rank channels by 'magnitude'"
        )
    total = np.zeros((*group.index, group.size))
    for member in members:
        leaf = statistics[member.path]
        total += _relative(_sums(_energies(leaves[member.path], leaf), member))
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
        total += _sums(score, member)
    return total


@jax.jit
def _energies(leaf: Array, statistics: LeafStatistics) -> Array:
    """Returns the sum over tokens of the square of each weight times its input.

    Problems that met no tokens count as one token, so they rank by magnitude.
    """
    moments = fill_starved(statistics).mean_square
    weight = jnp.maximum(statistics.tokens, 1)[:, None] * moments
    matrices = jnp.square(statistics.scaled_matrices(leaf))
    return statistics.columns.from_matrices(matrices * weight[:, :, None])


def _relative(sums: _Scores) -> _Scores:
    """Returns sums divided by their mean: leaves of other scales count alike."""
    return sums / np.maximum(sums.mean(-1, keepdims=True), np.finfo(np.float64).tiny)


def _sums(weights: Any, member: ChannelMember, *, square: bool = False) -> _Scores:
    """Sums a leaf over all but a group's channels and what they are separate for."""
    where = member._replace(path="")  # alike layers share one program
    return np.asarray(_traced_sums(weights, where, square), np.float64)


@partial(jax.jit, static_argnums=(1, 2))
def _traced_sums(weights: Array, member: ChannelMember, square: bool) -> Array:
    weights = weights.astype(wide_float(weights.dtype))
    view = read_member(replicate(weights), member)
    kept = (*member.indices, member.channel)
    others = tuple(axis for axis in range(view.ndim) if axis not in kept)
    sums = (jnp.square(view) if square else view).sum(others)
    return sums.transpose(np.argsort(np.argsort(kept)))
