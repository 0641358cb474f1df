"""Channels in the order with which n:m pruning keeps most."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxsparse._channels.channel_moves import move_leaves, moves_of
from jaxsparse._channels.consumers import find_all_consumers, member_scores
from jaxsparse._channels.find_groups import find_groups
from jaxsparse._channels.group_permutation import GroupPermutation, permute_group
from jaxsparse._channels.groups import ChannelGroups
from jaxsparse._channels.permutation_result import PermutationResult, PermutedGroup
from jaxsparse._channels.same_outputs import outputs_of
from jaxsparse._channels.shard_blocks import shard_blocks
from jaxsparse._channels.verify_permutations import verify_permutations
from jaxsparse._plans import Plan, PlanLike, plan_for
from jaxsparse._trees import PyTree, flatten, is_numeric, require_kind, require_values


def permute_channels(
    params: PyTree,
    plan: PlanLike,
    fn: Callable[..., Any],
    args: Sequence[Any],
    *,
    scores: PyTree | None = None,
    key: jax.Array | None = None,
    groups: ChannelGroups | None = None,
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
      ValueError: no channels can be permuted, which the error explains, as where no
        pattern is n:m; the function
        changed by more than rounding, where the error names the group; scores do not
        fit or are not finite; besides the errors of `plan_sparsity`.
      TypeError: a leaf or an argument has no values, or `groups` are of another kind.

    >>> import jax.numpy as jnp
    >>> from jaxsparse import plan_sparsity
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> params = {
    ...     "up": jax.random.normal(keys[0], (16, 64)),
    ...     "down": jax.random.normal(keys[1], (64, 64)),
    ... }
    >>> fn = lambda params, x: jax.nn.relu(x @ params["up"]) @ params["down"]
    >>> x = jnp.ones((1, 16))
    >>> plan = plan_sparsity(params, "2:4", fn=fn, args=(x,), dense_head=False)
    >>> result = permute_channels(params, plan, fn, (x,))
    >>> gain = result.gains[0]
    >>> print(gain.leaves, gain.after > gain.before + 0.02)
    ('down',) True
    >>> bool((result.invert(result.params)["down"] == params["down"]).all())
    True
    """
    leaves = flatten(params)
    plan = plan_for(params, plan)
    groups = find_groups(fn, params, args) if groups is None else groups
    _check_groups(groups, leaves.by_path)
    consumers = find_all_consumers(groups, plan)
    ranked = _scores(leaves.by_path, plan, scores)
    outputs = outputs_of(fn, params, args)
    key = jax.random.key(0) if key is None else key

    permuted: Mapping[str, Any] = leaves.by_path
    permutations: dict[int, np.ndarray] = {}
    gains: dict[int, PermutedGroup] = {}
    for number, group in consumers.items():
        if group.reason:
            gains[number] = PermutedGroup(group.paths, reason=group.reason)
            continue
        score = partial(member_scores, ranked, magnitude=scores is None)
        result = permute_group(
            [*map(score, group.members)],
            group.pattern,
            shard_blocks(permuted, groups[number]),
            jax.random.fold_in(key, number),
        )
        order = result.order.reshape(*groups[number].index, -1)
        moves = moves_of(groups, {number: order})
        permuted, ranked = move_leaves(permuted, moves), move_leaves(ranked, moves)
        permutations[number], gains[number] = order, _gain(group.paths, result)
    verify_permutations(outputs, leaves.by_path, groups, permutations)
    return PermutationResult(leaves.unflatten(permuted), permutations, gains, groups)


def _check_groups(groups: ChannelGroups, leaves: Mapping[str, Any]) -> None:
    remedy = "give channel_groups(fn, params, *args)"
    require_kind("permute_channels", groups, (ChannelGroups,), remedy)
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


def _gain(leaves: tuple[str, ...], result: GroupPermutation) -> PermutedGroup:
    total = result.total or 1.0
    before, after, rows = result.before, result.after, result.rows
    return PermutedGroup(leaves, before / total, after / total, rows / total)
