"""Channels in the order with which n:m pruning keeps most."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from jaxsparse._channels.channel_moves import Moves, move_leaf, moves_of
from jaxsparse._channels.consumers import Consumers, find_consumers, member_scores
from jaxsparse._channels.groups import ChannelGroups
from jaxsparse._channels.kept_scores import kept_by_rows, kept_scores
from jaxsparse._channels.permutation_result import PermutationResult, PermutedGroup
from jaxsparse._channels.permutation_search import search_permutation
from jaxsparse._channels.same_outputs import Outputs, outputs_of, relative_difference
from jaxsparse._channels.shard_blocks import shard_blocks
from jaxsparse._patterns import NM
from jaxsparse._plans import Plan, PlanLike, plan_for_leaves
from jaxsparse._trees import PyTree, flatten, is_numeric, require_values


#: A search looks at so many scores, evenly over all, and so takes 1 GiB at most.
_SEARCHED_SCORES = 2**28


def permute_channels(
    params: PyTree,
    plan: PlanLike,
    fn: Callable[..., Any],
    args: Sequence[Any],
    *,
    scores: PyTree | None = None,
    key: jax.Array | None = None,
    groups: ChannelGroups,
) -> PermutationResult:
    """Permutes channels so that n:m pruning keeps more, without changing the function.

    A group of n:m is `m` channels that happen to be neighbours. Channels that all their
    producers and consumers can hold in another order, such as the hidden ones of an
    MLP, are permuted in all of these leaves together, so that the best n:m masks keep
    the highest scores. Pool and Yu, "Channel Permutations for N:M Sparsity" (2021,
    NeurIPS). The result costs nothing at run time.

    It runs on the host. Where an axis is sharded, channels stay on their device.

    Args:
      params: a tree of arrays.
      plan: a plan, rules or a pattern: which leaves will be pruned.
      fn: a function `fn(params, *args)`: a forward pass or a loss. It is traced to find
        what can be permuted, and run before and after to verify it.
      args: its further arguments.
      scores: a tree like `params` of real numbers, as for `create_masks`. Leaves that
        stay dense need none. The default is the magnitude of the weights.
      key: the random key of the search, which finds the same for the same key. The
        default is `jax.random.key(0)`.
      groups: the channel groups, `channel_groups(fn, params, *args)` by default.

    Returns:
      The permuted parameters, the permutations, and what they gain.

    Raises:
      ValueError: no channels can be permuted, which the error explains; the function
        changed by more than rounding, where the error names the group; scores do not
        fit or are not finite; besides the errors of `plan_sparsity`.
      TypeError: a leaf or an argument has no values.
    """
    leaves = flatten(params)
    plan = plan_for_leaves(leaves.by_path, plan)
    _check_groups(groups, leaves.by_path)
    consumers = _all_consumers(groups, plan)
    ranked = _scores(leaves.by_path, plan, scores)
    outputs = outputs_of(fn, params, args)
    key = jax.random.key(0) if key is None else key

    permuted: Mapping[str, Any] = leaves.by_path
    permutations: dict[int, np.ndarray] = {}
    gains: dict[int, PermutedGroup] = {}
    for number, found in consumers.items():
        paths = tuple(dict.fromkeys(member.path for member in found.members))
        gains[number] = PermutedGroup(paths, reason=found.reason)
        if found.reason:
            continue
        blocks = shard_blocks(permuted, groups[number])
        tables = [
            member_scores(ranked, member, magnitude=scores is None)
            for member in found.members
        ]
        order = _search(tables, found.pattern, blocks, jax.random.fold_in(key, number))
        order, gains[number] = _measure(tables, order, found.pattern, paths)
        permutations[number] = order.reshape(*groups[number].index, -1)
        moves = moves_of(groups, {number: permutations[number]})
        permuted, ranked = _moved(permuted, moves), _moved(ranked, moves)
    _verify(outputs, leaves.by_path, permuted, groups, permutations)
    return PermutationResult(leaves.unflatten(permuted), permutations, gains, groups)


def _all_consumers(groups: ChannelGroups, plan: Plan) -> dict[int, Consumers]:
    """Returns the consumers of each group that has some, by its number.

    Raises:
      ValueError: no group with consumers can be permuted.
    """
    found = {i: find_consumers(group, plan) for i, group in enumerate(groups)}
    found = {i: consumers for i, consumers in found.items() if consumers.members}
    if all(consumers.reason for consumers in found.values()):
        reasons = [f"group {i}: {consumers.reason}" for i, consumers in found.items()]
        none = "no n:m groups of the plan lie along channels of a group"
        raise ValueError(
            "no channels can be permuted so that n:m pruning keeps more: "
            + ("; ".join(reasons) or none)
        )
    return found


def _check_groups(groups: ChannelGroups, leaves: Mapping[str, Any]) -> None:
    for number, group in enumerate(groups):
        for member in group.members:
            shape = tuple(getattr(leaves.get(member.path), "shape", ()))
            ends = tuple(stop for _, stop in member.slices)
            fits = len(shape) == len(ends) and all(map(int.__ge__, shape, ends))
            if not fits:
                raise ValueError(
                    f"channel group {number} has the leaf {member.path!r} up to "
                    f"{ends}, and params have the shape {shape} there: make the groups "
                    "by channel_groups(fn, params, *args)"
                )


def _scores(
    leaves: Mapping[str, Any], plan: Plan, scores: PyTree | None
) -> dict[str, Any]:
    """Returns the scores of the pruned leaves by path, magnitudes by default."""
    given = leaves if scores is None else flatten(scores).by_path
    for leaf in plan.sparse:
        require_values(leaf.path, leaves[leaf.path])
        score = given.get(leaf.path)
        if not is_numeric(score) or tuple(score.shape) != leaf.shape:
            raise ValueError(
                f"leaf {leaf.path!r} of shape {leaf.shape} needs real scores of the "
                f"same shape, got {getattr(score, 'shape', score)}"
            )
    return {leaf.path: given[leaf.path] for leaf in plan.sparse}


def _search(
    tables: Sequence[np.ndarray], pattern: NM, blocks: int, key: jax.Array
) -> Int32[np.ndarray, "problem channel"]:
    """Returns an order of channels that keeps more, and leaves each in its block."""
    problems, size, _ = tables[0].shape
    rows = sum(table.shape[2] for table in tables)
    step = -(-problems * size * rows // _SEARCHED_SCORES)
    scores = np.concatenate([table[:, :, ::step] for table in tables], axis=2)
    # Blocks that split groups of m are as good as none.
    blocks = blocks if size % (blocks * pattern.m) == 0 else 1
    in_blocks = scores.reshape(problems * blocks, size // blocks, -1)
    found = search_permutation(jnp.asarray(in_blocks), pattern.n, pattern.m, key)
    starts = np.arange(blocks, dtype=np.int32)[:, None] * (size // blocks)
    return (found.reshape(problems, blocks, -1) + starts).reshape(problems, size)


def _measure(
    tables: Sequence[np.ndarray],
    order: Int32[np.ndarray, "problem channel"],
    pattern: NM,
    leaves: tuple[str, ...],
) -> tuple[Int32[np.ndarray, "problem channel"], PermutedGroup]:
    """Returns the order, or the old one where that keeps more, and what it gains."""
    n, m = pattern.n, pattern.m
    old = np.broadcast_to(np.arange(order.shape[1], dtype=np.int32), order.shape)
    before = sum(kept_scores(table, old, n, m) for table in tables)
    after = sum(kept_scores(table, order, n, m) for table in tables)
    rows = sum(kept_by_rows(table, n, m).sum() for table in tables)
    total = sum(table.sum(dtype=np.float64) for table in tables) or 1.0
    order = np.where((after > before)[:, None], order, old)
    kept = np.maximum(before, after)
    shares = [float(part.sum() / total) for part in (before, kept, rows)]
    return order, PermutedGroup(leaves, *shares)


def _moved(leaves: Mapping[str, Any], moves: Moves) -> dict[str, Any]:
    """Returns leaves by path with the channels of some moved."""
    return {
        path: move_leaf(leaf, moves[path]) if path in moves else leaf
        for path, leaf in leaves.items()
    }


def _verify(
    outputs: Outputs,
    leaves: Mapping[str, Any],
    permuted: Mapping[str, Any],
    groups: ChannelGroups,
    permutations: Mapping[int, np.ndarray],
) -> None:
    """Raises if the permuted leaves give other outputs; the error names the group."""
    before = outputs.of(leaves)
    change = lambda leaves: relative_difference(before, outputs.of(leaves))
    if (difference := change(permuted)) <= outputs.rounding:
        return
    numbers = [*permutations]
    right, wrong = 0, len(numbers)  # how many of them leave the outputs as they are
    while wrong - right > 1:
        middle = (right + wrong) // 2
        some = {number: permutations[number] for number in numbers[:middle]}
        is_right = change(_moved(leaves, moves_of(groups, some))) <= outputs.rounding
        right, wrong = (middle, wrong) if is_right else (right, middle)
    number = numbers[wrong - 1]
    members = ", ".join(map(str, groups[number].members))
    raise ValueError(
        f"the outputs of fn change by {difference:.1g} of their norm, more than by "
        f"rounding ({outputs.rounding:.1g}), with the channels of group {number} "
        f"permuted: {members}. Leave this group out of `groups`, and please report it"
    )
