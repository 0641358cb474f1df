"""Whole channels taken out of a model, which is then smaller and stays dense."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int32

from jaxsparse._calibration import (
    SHRINKAGE,
    LeafStatistics,
    Shrinkage,
    check_shrinkage,
    match_second_moments,
    match_statistics,
    warn_of_few_tokens,
    warn_of_starved,
)
from jaxsparse._channels import ChannelGroup, ChannelGroups, ChannelMember, find_groups
from jaxsparse._shrinking.channel_scores import Scores, channel_scores
from jaxsparse._shrinking.new_sizes import FractionByGroup, SizeByGroup, new_sizes
from jaxsparse._shrinking.refit import refit
from jaxsparse._shrinking.report import ShrinkReport, report_leaves
from jaxsparse._shrinking.take_out import (
    Order,
    cuts_of,
    orders_along,
    put_back,
    take_out,
)
from jaxsparse._trees import (
    Leaves,
    PyTree,
    array_shapes,
    flatten,
    map_named,
    require_kind,
    require_values,
)


class ShrinkResult(NamedTuple):
    """The result of `shrink_params`.

    Attributes:
      params: a tree like the parameters, with smaller leaves.
      channels: for each group that lost channels, by its number in `groups`, the old
        indices of those that are kept, in order: int32, along the last axis. The axes
        before it are those of the group's `index`.
      groups: the groups of channels.
      report: the old and the new shapes; printed, it is a table.
    """

    params: PyTree
    channels: Mapping[int, Int32[np.ndarray, "..."]]
    groups: ChannelGroups
    report: ShrinkReport

    def __str__(self) -> str:
        return str(self.report)


def shrink_params(
    params: PyTree,
    fn: Callable[..., Any] | None = None,
    args: Sequence[Any] = (),
    *,
    sparsity: float | FractionByGroup | None = None,
    sizes: SizeByGroup | None = None,
    scores: Scores | None = None,
    statistics: Any = None,
    shrinkage: Shrinkage = SHRINKAGE,
    multiple_of: int = 8,
    groups: ChannelGroups | None = None,
) -> ShrinkResult:
    """Takes whole channels out of a model, which becomes smaller and faster anywhere.

    Of every group of channels that can be cut, those of the lowest scores go from all
    leaves that they go through: hidden channels of an MLP, channels of convolutions
    together with their norms, heads, experts. `channel_groups` shows the groups. The
    result is dense, and any pattern can prune it further.

    With statistics the layers that take the channels in are refitted, by ridge
    regression, to give with the kept ones the outputs that they gave with all. A few
    thousand tokens give most of the accuracy back, without training.

    Sizes decide shapes, so this runs on the host, not under `jit`.

    Args:
      params: a tree of arrays.
      fn: a function `fn(params, *args)`, which is traced for the groups; not needed if
        `groups` are given.
      args: its further arguments; arrays may be `jax.ShapeDtypeStruct`.
      sparsity: the fraction of the channels that goes from each group that can be cut.
        Or fractions for some of the groups: a key is the number of a group, or a
        regular expression that must match the whole path of one of its leaves, and the
        first that is meant for a group counts.
      sizes: instead of `sparsity`, the numbers of channels that stay, by such keys. A
        group with an `index` keeps as many for each of its elements.
      scores: what ranks channels. `"magnitude"`: the squared norms of a channel's
        weights, each relative to the mean of its leaf (Fang et al., "DepGraph", 2023,
        arXiv:2301.12900). `"energy"`: the squared norms of what a channel adds to the
        outputs of the layers that take it in, by statistics, again relative to their
        mean. A tree like `params`: scores of weights, such as those of
        `saliency_scores`, which are added up for each channel. Or a function of a
        `ChannelGroup` that returns an array `[*index, size]`, such as `reap_scores` of
        experts; it is called for each group that loses channels. The default is
        `"energy"` with statistics, else `"magnitude"`.
      statistics: second moments of the inputs of every leaf that takes channels in,
        from `collect_statistics`. `plan=` there says which leaves are measured.
      shrinkage: the fraction by which the second moment's entries off the diagonal are
        reduced first, or `"auto"`, as in `SparseGPTSearcher`. It is the ridge; with 1
        nothing is refitted.
      multiple_of: sizes that follow from `sparsity` are rounded to a multiple of this,
        and a group with no more channels stays whole. 8 suits CPUs and GPUs, 128 the
        lanes of a TPU, 1 heads and experts.
      groups: the result of `channel_groups`, or groups made by hand; traced by default.

    Returns:
      A `ShrinkResult`. Print it for the old and the new shapes. Leaves keep their
      sharding, but for axes that the shards no longer divide.

    Raises:
      ValueError: nothing can be cut, or an argument is missing or out of its range;
        scores or statistics do not fit, or only mean squares were collected.
      TypeError: a leaf has no values, or one to be refitted has an integer dtype.

    Warns:
      UserWarning: a leaf to be refitted met few tokens, or none.

    >>> import jax, jax.numpy as jnp
    >>> params = {"up": jnp.eye(4, 16) + jnp.eye(4, 16, 9), "down": jnp.ones((16, 4))}
    >>> fn = lambda params, x: jax.nn.relu(x @ params["up"]) @ params["down"]
    >>> result = shrink_params(params, fn, (jnp.ones((2, 4)),), sparsity=0.5)
    >>> print(result)
    leaf   shape  now  channels
    down   16x4   8x4  inputs along axis 0
    up     4x16   4x8  outputs along axis 1
    total  128    64   256 of 512 B
    >>> result.channels[0]
    array([ 0,  1,  2,  3,  9, 10, 11, 12], dtype=int32)
    >>> x = jnp.ones((2, 4))
    >>> (fn(result.params, x) == fn(params, x)).all()
    Array(True, dtype=bool)
    """
    check_shrinkage(shrinkage)
    leaves = flatten(params)
    if groups is None:
        if fn is None:
            raise ValueError(
                "channels are found in a function of the parameters: give fn and args, "
                "or groups"
            )
        groups = find_groups(fn, params, args)
    kept_sizes = new_sizes(groups, sparsity, sizes, multiple_of)
    cut = [groups[number] for number in kept_sizes]
    for path in {member.path for group in cut for member in group.members}:
        require_values(path, leaves.by_path[path])
    measured = _measured(cut, leaves, statistics, shrinkage)
    if shrinkage != 1:
        warn_of_few_tokens(
            {path: measured[path] for path in measured.keys() & _consumers(cut)}
        )
    warn_of_starved(measured)
    if scores is None:
        scores = "energy" if measured else "magnitude"
    channels = {
        number: _highest(
            channel_scores(groups[number], leaves.by_path, scores, measured), size
        )
        for number, size in kept_sizes.items()
    }
    orders = _orders(groups, channels, array_shapes(leaves.by_path))

    def shrink(path: str, leaf: Any) -> Any:
        if path not in orders:
            return leaf
        if path in measured and shrinkage != 1:
            leaf = refit(path, leaf, orders[path], measured[path], shrinkage)
        return take_out(leaf, cuts_of(orders[path]))

    smaller = map_named(shrink, params)
    report = report_leaves(leaves.by_path, flatten(smaller).by_path, cut)
    return ShrinkResult(smaller, channels, groups, report)


def grow_back(result: ShrinkResult, params: PyTree) -> PyTree:
    """Returns a smaller tree in the old shapes, with zeros where channels were.

    The model of the old sizes gives the outputs of the smaller one: the layers that
    take channels in multiply those that went by zero. It does not where these also
    count in another way, as an expert that a router may choose.

    Args:
      result: the result of `shrink_params`.
      params: a tree like `result.params`: these, or what was trained from them.

    Returns:
      A tree like `params`, whose leaves have the shapes before `shrink_params`.

    Raises:
      ValueError: a leaf does not have the shape that it has in the result.
      TypeError: `result` is not that of `shrink_params`.

    >>> import jax.numpy as jnp
    >>> params = {"up": jnp.ones((4, 16)), "down": jnp.arange(16.0)[:, None]}
    >>> fn = lambda params, x: x @ params["up"] @ params["down"]
    >>> result = shrink_params(params, fn, (jnp.ones((2, 4)),), sizes={"up": 2})
    >>> result.params["down"].ravel(), grow_back(result, result.params)["down"].ravel()
    (Array([14., 15.], dtype=float32),
     Array([ 0.,  0.,  0.,  0.,  0.,  0.,  0.,  0.,  0.,  0.,  0.,  0.,  0.,
             0., 14., 15.], dtype=float32))
    """
    require_kind("grow_back", result, (ShrinkResult,), "shrink_params returns one")
    before = {leaf.path: leaf for leaf in result.report}
    shapes = {path: leaf.shape for path, leaf in before.items()}
    orders = _orders(result.groups, result.channels, shapes)

    def grow(path: str, leaf: Any) -> Any:
        if path not in orders:
            return leaf
        if leaf.shape != before[path].new_shape:
            raise ValueError(
                f"leaf {path!r} has shape {leaf.shape}, and {before[path].new_shape} "
                "in the result: give its params, or what was trained from them"
            )
        return put_back(leaf, cuts_of(orders[path]))

    return map_named(grow, params)


def _measured(
    groups: Sequence[ChannelGroup],
    leaves: Leaves,
    statistics: Any,
    shrinkage: Shrinkage,
) -> dict[str, LeafStatistics]:
    """Returns the statistics of the leaves that lose channels, checked.

    Those of leaves that take channels in have to be there.
    """
    if statistics is None:
        return {}
    consumers = _consumers(groups)
    if missing := [path for path in consumers if path not in statistics]:
        raise ValueError(
            f"leaf {missing[0]!r} of shape {leaves.by_path[missing[0]].shape} takes in "
            "channels that go, and has no statistics to refit it by: pass "
            "collect_statistics(..., plan=plan) a plan that names it, such as "
            "plan_sparsity(params, Unstructured(0.5), fn=fn, args=args, "
            "dense_head=False)"
        )
    members = {member.path for group in groups for member in group.members}
    others = members & statistics.keys() - consumers
    refitted = {path: x for path, x in leaves.by_path.items() if path in consumers}
    shapes = {path: x.shape for path, x in leaves.by_path.items() if path in others}
    by_path = match_second_moments(refitted, statistics, shrinkage)
    return by_path | match_statistics(shapes, statistics)


def _consumers(groups: Sequence[ChannelGroup]) -> set[str]:
    """Returns the paths of leaves that take in channels of some groups."""
    members = (member for group in groups for member in group.members)
    return {member.path for member in members if member.role == "input"}


def _highest(
    scores: Float[np.ndarray, "*index channel"], count: int
) -> Int32[np.ndarray, "*index kept"]:
    """Returns the indices of the highest scores, in order; of ties, the lower ones."""
    order = np.argsort(-scores, axis=-1, stable=True)[..., :count]
    return np.sort(order, axis=-1).astype(np.int32)


def _orders(
    groups: ChannelGroups,
    channels: Mapping[int, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, dict[int, Order]]:
    """Returns for each leaf that loses channels the orders along its axes."""
    members: dict[str, list[tuple[ChannelMember, np.ndarray]]] = {}
    for number, indices in channels.items():
        group = groups[number]
        mask = np.zeros((*group.index, group.size), np.bool_)
        np.put_along_axis(mask, indices, True, axis=-1)
        for member in group.members:
            members.setdefault(member.path, []).append((member, mask))
    return {path: orders_along(shapes[path], parts) for path, parts in members.items()}
