"""Checks that a tree is as sparse as its plan says."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsparse._compressed import (
    Compressed,
    as_dense_shapes,
    code_fault,
    decompress,
    is_compressed,
    plan_mismatch,
    require_stored_values,
)
from jaxsparse._patterns import NM, Block, Channel, PerOutput, is_zero, reduce_tiles
from jaxsparse._plans import LeafPlan, PlanLike, counted_groups, plan_for
from jaxsparse._reports.measure import measure_leaf
from jaxsparse._trees import PyTree, flatten


class SparsityError(ValueError):
    """A tree is not as sparse as its plan says.

    Attributes:
      faults: the fault of each leaf that has one, by its path. Leaves that share a
        threshold share their fault.
      counts: for each of these leaves what is not sparse, such as `3 of 256 groups`;
        empty for leaves that are not compressed as planned.
    """

    def __init__(
        self,
        summary: str,
        faults: Mapping[str, str],
        counts: Mapping[str, str] = MappingProxyType({}),
    ):
        super().__init__(summary, dict(faults), dict(counts))
        self.faults = faults
        self.counts = counts

    def __str__(self) -> str:
        """The summary, with a line for each fault."""
        lines = "\n".join(dict.fromkeys(self.faults.values())).splitlines()
        return "\n".join([f"{self.args[0]}:", *(f"  {line}" for line in lines)])


def check_sparsity(params: PyTree, plan: PlanLike = "2:4") -> None:
    """Raises an error unless every leaf that the plan prunes has its pattern.

    It reads values, so it runs outside `jit`: after a restore, before an export.

    Args:
      params: a tree of arrays, some of which may be `Compressed`. A compressed leaf
        keeps no more than its own pattern, so only its pattern and axis are compared
        with the plan's, and its indices are checked for codes that `compress` cannot
        write.
      plan: a plan, rules or a pattern.

    Raises:
      ValueError: a group has more than `n` non-zero weights (NaN counts as one), or a
        leaf has more non-zero weights, blocks or channels than its pattern keeps. The
        error names every such leaf and its first bad group, and has the text for each
        leaf by path in its attribute `faults`. Also if a compressed leaf is not
        compressed as the plan says or its indices are damaged, or the plan does not
        fit.
      TypeError: a leaf has no values.

    >>> params = {"kernel": jnp.ones((16, 8))}
    >>> try:
    ...     check_sparsity(params, "2:4")
    ... except ValueError as error:
    ...     print(error)
    not sparse as planned; mask_params(params, masks) prunes it:
      'kernel' of shape (16, 8), 2:4 along axis 0: 32 of 32 groups keep more than 2; the
      first, with 4, starts at (0, 0)
    """
    plan = plan_for(as_dense_shapes(params), plan)
    leaves = flatten(params, is_leaf=is_compressed).by_path
    for planned in plan.sparse:
        require_stored_values(planned.path, leaves[planned.path])
    mismatches = {
        path: fault
        for path, leaf in leaves.items()
        if is_compressed(leaf) and (fault := _storage_fault(path, leaf, plan[path]))
    }
    if mismatches:
        raise SparsityError("not compressed as planned", mismatches)
    faults: dict[str, str] = {}
    counts: dict[str, str] = {}
    for group, total, kept in counted_groups(plan.sparse):
        if group_faults := _faults(group, leaves, total, kept):
            paths = [leaf.path for leaf in group]
            faults |= dict.fromkeys(paths, "\n".join(x.text for x in group_faults))
            counts |= dict.fromkeys(paths, "; ".join(x.amount for x in group_faults))
    if faults:
        summary = "not sparse as planned; mask_params(params, masks) prunes it"
        raise SparsityError(summary, faults, counts)


class _Fault(NamedTuple):
    """What of a leaf is not sparse: how much, and the whole text."""

    amount: str
    text: str


def _storage_fault(path: str, leaf: Compressed, planned: LeafPlan) -> str:
    """Returns what is wrong with how a leaf is compressed, if anything."""
    if mismatch := plan_mismatch(path, leaf, planned):
        return mismatch
    fault = code_fault(leaf)
    return fault and f"{path!r} of shape {leaf.shape}, {planned.decision}: {fault}"


def _faults(
    group: Sequence[LeafPlan], leaves: Mapping[str, Any], total: int, kept: int
) -> list[_Fault]:
    """Returns the faults of leaves that are counted together."""
    leaf = group[0]
    weight = leaves[leaf.path]
    match leaf.pattern:
        case NM(m=m):
            faults = [
                _group_fault(leaf, weight, kept, m, axis)
                for axis in _axes_to_check(leaf, weight)
            ]
        case PerOutput():
            faults = [_output_fault(leaf, weight, kept)]
        case _:
            faults = [_count_fault(group, leaves, total, kept)]
    return [fault for fault in faults if fault is not None]


def _nonfinite_note(weights: Iterable[ArrayLike | Compressed]) -> str:
    """Returns a note on the NaN and infinite weights of leaves, if they have any.

    They stay: no update makes `weight + update` zero, since `inf - inf` is NaN.
    """
    count = sum(int(measure_leaf(weight, None)["nonfinite"]) for weight in weights)
    if not count:
        return ""
    return f"{count} NaN or infinite weights, which no update can prune; "


def _axes_to_check(leaf: LeafPlan, weight: ArrayLike | Compressed) -> list[int]:
    """Returns the axes along which an n:m leaf may have bad groups."""
    assert leaf.axis is not None
    assert isinstance(leaf.pattern, NM)
    # The storage of a compressed leaf guarantees its pattern along its axis.
    axes = [] if is_compressed(weight) else [leaf.axis]
    if leaf.pattern.transposable:
        axes.append(leaf.output[-1])
    return axes


def _group_fault(
    leaf: LeafPlan, weight: ArrayLike | Compressed, n: int, m: int, axis: int
) -> _Fault | None:
    """Returns what is wrong with the groups along an axis of a leaf, if anything."""
    assert leaf.shape is not None
    tile = tuple(m if i == axis else 1 for i in range(len(leaf.shape)))
    counts = np.asarray(_nonzero_sums(weight, tile))
    bad = counts > n
    if not bad.any():
        return None
    along = "" if axis == leaf.axis else f" along axis {axis}"
    group = np.argwhere(bad)[0]
    start = [int(i) for i in group]
    start[axis] *= m
    amount = f"{bad.sum()} of {bad.size} groups"
    text = (
        f"{leaf.path!r} of shape {leaf.shape}, {leaf.decision}: "
        f"{_nonfinite_note([weight])}{amount} keep more than {n}; the first, with "
        f"{counts[tuple(group)]}, starts at {tuple(start)}{along}"
    )
    return _Fault(amount, text)


def _output_fault(leaf: LeafPlan, weight: ArrayLike, kept: int) -> _Fault | None:
    """Returns what is wrong with the outputs of a leaf, if anything."""
    assert leaf.shape is not None
    tile = tuple(1 if i in leaf.rows else n for i, n in enumerate(leaf.shape))
    counts = np.asarray(_nonzero_sums(weight, tile))
    bad = counts > kept
    if not bad.any():
        return None
    first = tuple(int(i) for i in np.argwhere(bad)[0])
    amount = f"{bad.sum()} of {bad.size} outputs"
    text = (
        f"{leaf.path!r} of shape {leaf.shape}, {leaf.decision}: "
        f"{_nonfinite_note([weight])}{amount} keep more than {kept}; the first, with "
        f"{counts[first]}, starts at {first}"
    )
    return _Fault(amount, text)


def _count_fault(
    group: Sequence[LeafPlan], leaves: Mapping[str, Any], total: int, kept: int
) -> _Fault | None:
    """Returns what is wrong with leaves that keep a number of tiles, if anything."""
    nonzero = sum(int(_nonzero_tiles(leaves[leaf.path], leaf.tile)) for leaf in group)
    if nonzero <= kept:
        return None
    first, *more = group
    others = f" and {len(more)} more leaves" if more else ""
    match first.pattern:
        case Block():
            unit = "blocks"
        case Channel():
            unit = "channels"
        case _:
            unit = "weights"
    note = _nonfinite_note(leaves[leaf.path] for leaf in group)
    amount = f"{nonzero} of {total} {unit} are not zero"
    text = (
        f"{first.path!r} of shape {first.shape}{others}, {first.decision}: {note}"
        f"{amount}, but at most {kept} may be"
    )
    return _Fault(amount, text)


@partial(jax.jit, static_argnums=1)
def _nonzero_sums(weight: jax.Array | Compressed, tile: tuple[int, ...]) -> jax.Array:
    """Returns the number of non-zero weights in every tile."""
    weight = decompress(weight) if isinstance(weight, Compressed) else weight
    return reduce_tiles(partial(jnp.sum, dtype=jnp.int32), ~is_zero(weight), tile)


@partial(jax.jit, static_argnums=1)
def _nonzero_tiles(weight: jax.Array, tile: tuple[int, ...]) -> jax.Array:
    """Returns the number of tiles that have a non-zero weight."""
    return jnp.sum(reduce_tiles(jnp.any, ~is_zero(weight), tile), dtype=jnp.uint32)
