"""The state of a masked optimizer, and the masks in it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax
from jax.tree_util import tree_flatten_with_path, treedef_is_leaf
from jaxtyping import Array, Float, Integer

from jaxsparse._trees import (
    PyTree,
    flatten_masks,
    is_dense_entry,
    path_name,
    without_box,
)


class SparseState(NamedTuple):
    """The state of `wrap_optimizer` and `keep_params_sparse`.

    Attributes:
      count: updates made so far, an int32 scalar.
      masks: a tree like the parameters: packed uint8 masks, None for dense leaves.
      inner_state: the state of the wrapped optimizer.
    """

    count: Integer[Array, "..."]  # pyright: ignore[reportIncompatibleMethodOverride]
    masks: PyTree
    inner_state: optax.OptState


class RegrowthState(NamedTuple):
    """The state of `regrow_by_gradient` and `regrow_at_random`.

    Attributes:
      count: updates made so far, an int32 scalar.
      masks: a tree like the parameters: packed uint8 masks, None for dense leaves.
      inner_state: the state of the wrapped optimizer.
      flip_rate: the fraction of the masked leaves' weights that the last change of
        masks dropped or regrew, a float32 scalar.
    """

    count: Integer[Array, "..."]  # pyright: ignore[reportIncompatibleMethodOverride]
    masks: PyTree
    inner_state: optax.OptState
    flip_rate: Float[Array, "..."]


class StraightThroughState(NamedTuple):
    """The state of `add_sr_ste_decay`.

    Attributes:
      count: updates made so far, an int32 scalar.
      masks: a tree like the parameters: packed uint8 masks, None for dense leaves.
      flip_rate: the fraction of the masked leaves' weights that the last change of
        masks pruned or regrew, a float32 scalar.
    """

    count: Integer[Array, "..."]  # pyright: ignore[reportIncompatibleMethodOverride]
    masks: PyTree
    flip_rate: Float[Array, "..."]


#: What to do with a state that is a dict.
RESTORED_DICT = (
    "the state is a dict, as Orbax returns a checkpoint that it restores without a "
    "target: restore it with the target abstract_state(tx, params)"
)

#: Every state that has masks.
_STATES = SparseState | RegrowthState | StraightThroughState


def get_masks(opt_state: optax.OptState) -> PyTree:
    """Returns the masks in an optimizer's state, however deeply it is nested.

    Args:
      opt_state: a state that contains the state of `wrap_optimizer`,
        `keep_params_sparse`, `regrow_by_gradient`, `regrow_at_random` or
        `add_sr_ste_decay`.

    Returns:
      A tree like the parameters with a packed mask for each leaf, or None for a dense
      one. If several wrappers prune parts of the tree, their masks are merged.

    Raises:
      ValueError: no such state, or two that prune the same leaf.
      TypeError: the state is a dict, as Orbax restores it without a target.

    >>> import jaxsparse
    >>> params = {"kernel": jax.numpy.ones((16, 8))}
    >>> tx = jaxsparse.wrap_optimizer(optax.sgd(0.1), "2:4")
    >>> state = optax.chain(optax.clip(1.0), tx).init(params)
    >>> get_masks(state)["kernel"].shape
    (2, 8)
    """
    trees = [state.masks for state in _states_in(opt_state)]
    if not trees and any(map(is_restored_dict, _nodes(opt_state, is_restored_dict))):
        raise TypeError(RESTORED_DICT)
    if not trees:
        raise ValueError(
            "no masks in this optimizer state: give the state of wrap_optimizer, "
            "keep_params_sparse, regrow_by_gradient, regrow_at_random or "
            "add_sr_ste_decay"
        )
    return _merge((), trees)


def flip_rates(opt_state: optax.OptState) -> list[tuple[Array, list[str]]]:
    """Every flip rate that is recorded in a state, with the paths of its leaves."""
    rates = []
    for state in _states_in(opt_state):
        if not isinstance(state, SparseState):
            (rate,) = jax.tree.leaves(state.flip_rate)  # out of the box of an NNX state
            masks = flatten_masks(state.masks)
            rates.append((rate, [path for path in masks if masks[path] is not None]))
    return rates


def _states_in(opt_state: optax.OptState) -> list[Any]:
    is_state = lambda node: isinstance(node, _STATES)
    return [node for node in _nodes(opt_state, is_state) if is_state(node)]


def is_restored_dict(node: Any) -> bool:
    """Returns whether a node is a dict with the fields of a state with masks."""
    return isinstance(node, Mapping) and {"count", "masks"} <= {*node}


def _nodes(tree: PyTree, is_node: Callable[[Any], bool]) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=is_node)


def _merge(path: tuple[Any, ...], nodes: Sequence[PyTree]) -> PyTree:
    """Merges trees of masks, of which each is dense where another one has a mask.

    Combinators remove leaves or whole branches, so trees are merged level by level.
    """
    present = [node for node in nodes if not is_dense_entry(node)]
    if not present:
        return None
    levels = [
        tree_flatten_with_path(node, is_leaf=lambda x, node=node: x is not node)
        for node in present
    ]
    children, structure = levels[0]
    if treedef_is_leaf(structure):
        if len(present) > 1:
            raise ValueError(
                f"two wrappers prune leaf {path_name(without_box(path))!r}: give each "
                "its own leaves, by optax.partition or by rules"
            )
        return present[0]
    return structure.unflatten(
        _merge(path + key, [level[i][1] for level, _ in levels])
        for i, (key, _) in enumerate(children)
    )
