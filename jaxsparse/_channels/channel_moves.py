"""Moves of channels in leaves, and in trees that hold copies of leaves."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from jaxsparse._channels.groups import ChannelGroup, ChannelMember
from jaxsparse._channels.member_view import AnyArray, take_channels
from jaxsparse._patterns import pack_mask, packed_axis, unpack_mask
from jaxsparse._sharding import device_put_like, replicate, reshard_like
from jaxsparse._trees import Keys, PyTree, is_array, map_by_parameter


class Move(NamedTuple):
    """A permutation of the channels in one leaf.

    Attributes:
      member: where the channels lie.
      channels: int32, of shape `[*index, channel]`: new channel `i` is old channel
        `channels[..., i]`.
    """

    member: ChannelMember
    channels: np.ndarray


#: The moves in each leaf, by path, one after the other.
Moves = Mapping[str, Sequence[Move]]


@runtime_checkable
class FollowsLeaf(Protocol):
    """What belongs to a leaf and has another layout, such as its statistics."""

    def rearranged(self, move: Callable[[Array], Array]) -> "FollowsLeaf":
        """Returns what belongs to `move(leaf)`."""
        ...


def moves_of(
    groups: Sequence[ChannelGroup], permutations: Mapping[int, np.ndarray]
) -> dict[str, list[Move]]:
    """Returns the moves of the permutations of some groups, in their order."""
    moves: dict[str, list[Move]] = {}
    for number, channels in permutations.items():
        for member in groups[number].members:
            moves.setdefault(member.path, []).append(Move(member, channels))
    return moves


def inverted(moves: Moves) -> dict[str, list[Move]]:
    """Returns the moves that undo others."""
    undo = lambda move: move._replace(
        channels=np.argsort(move.channels, axis=-1).astype(np.int32)
    )
    return {path: [*map(undo, reversed(of_leaf))] for path, of_leaf in moves.items()}


def move_leaf(leaf: AnyArray, moves: Sequence[Move]) -> AnyArray:
    """Returns a leaf with its channels moved, on the devices of the leaf.

    A leaf sharded over explicit axes of a mesh is gathered meanwhile.
    """
    if isinstance(leaf, np.ndarray):
        for member, channels in moves:
            leaf = take_channels(leaf, member, channels)
        return leaf
    moved: AnyArray = replicate(leaf)
    for member, channels in moves:
        moved = take_channels(moved, member, channels)
    moved = reshard_like(jnp.asarray(moved), leaf)
    return moved if isinstance(leaf, Tracer) else device_put_like(moved, leaf)


def move_leaves(leaves: Mapping[str, Any], moves: Moves) -> dict[str, Any]:
    """Returns leaves by path with the channels of some moved."""
    return {
        path: move_leaf(leaf, moves[path]) if path in moves else leaf
        for path, leaf in leaves.items()
    }


def move_tree(
    tree: PyTree, moves: Moves, shapes: Mapping[str, Any], paths: Mapping[Keys, str]
) -> PyTree:
    """Moves the channels of all leaves of a tree that belong to a parameter.

    Args:
      tree: a tree of parameters, masks, moments, statistics, in any nesting.
      moves: the moves.
      shapes: the shapes of the parameters, by path.
      paths: the paths of the parameters by their keys.

    Raises:
      ValueError: an array belongs to a parameter whose channels move, and has neither
        its shape nor that of a packed mask.
    """

    def move(path: str | None, leaf: Any) -> Any:
        if path is None or path not in moves:
            return leaf
        if isinstance(leaf, FollowsLeaf):
            return leaf.rearranged(lambda x: jnp.asarray(move_leaf(x, moves[path])))
        return _moved(path, leaf, moves[path], shapes[path])

    def inside(path: str, leaf: Any) -> Any:
        if path in moves and is_array(leaf) and leaf.size > 1:
            raise _other_layout(path, leaf, shapes[path])
        return leaf

    named = {(jax.tree_util.DictKey(path),): path for path in shapes}
    is_leaf = lambda x: isinstance(x, FollowsLeaf)
    return map_by_parameter(move, tree, {**named, **paths}, is_leaf, inside)


def _other_layout(path: str, leaf: Any, shape: tuple[int, ...]) -> ValueError:
    return ValueError(
        f"an array of shape {leaf.shape} belongs to leaf {path!r} of shape {shape}, "
        "whose channels move, and has another layout: make it anew for the permuted "
        "parameters"
    )


def _moved(path: str, leaf: Any, moves: Sequence[Move], shape: tuple[int, ...]) -> Any:
    if not is_array(leaf) or leaf.size <= 1:
        return leaf
    if leaf.shape == shape:
        return move_leaf(leaf, moves)
    axis = packed_axis(leaf.shape, shape) if leaf.dtype == jnp.uint8 else None
    if axis is None:
        raise _other_layout(path, leaf, shape)
    mask = unpack_mask(jnp.asarray(leaf), shape)
    return device_put_like(pack_mask(jnp.asarray(move_leaf(mask, moves)), axis), leaf)
