"""Does a tree obey its plan?"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

from jaxsparse._compressed import (
    Compressed,
    as_dense_shapes,
    decompress,
    is_compressed,
    plan_mismatch,
)
from jaxsparse._patterns import (
    NM,
    PerOutput,
    is_zero,
    reduce_tiles,
)
from jaxsparse._plans import (
    LeafPlan,
    PlanLike,
    counted_groups,
    plan_for,
)
from jaxsparse._trees import flatten


def check_sparsity(params: PyTree, plan: PlanLike = "2:4") -> None:
    """Raises unless every leaf that the plan prunes obeys its pattern.

    It reads values, so it runs outside `jit`: after a restore, before an export.

    Args:
      params: a tree of arrays, of which some may be `Compressed`: those hold no more
        than their pattern, so it is the pattern and the axis that have to be the
        plan's.
      plan: a plan, rules or a pattern.

    Raises:
      ValueError: groups with more than `n` non-zero weights (NaN is one), naming every
        leaf that has any and its first bad group, or more weights, blocks or channels
        than the pattern keeps; a compressed leaf that the plan does not prune so; or
        the plan does not fit.

    >>> params = {"kernel": jnp.ones((16, 8))}
    >>> check_sparsity(params, "2:4")
    Traceback (most recent call last):
    ValueError: not sparse as planned; mask_params(params, masks) makes it so:
      'kernel' of shape (16, 8), 2:4 along axis 0: 32 of 32 groups keep more than 2; the
      first, with 4, starts at (0, 0)
    """
    plan = plan_for(as_dense_shapes(params), plan)
    leaves, _ = flatten(params, is_leaf=is_compressed)
    stored = {path: leaf for path, leaf in leaves.items() if is_compressed(leaf)}
    faults = [plan_mismatch(path, leaf, plan[path]) for path, leaf in stored.items()]
    faults = [f"  {fault}" for fault in faults if fault]
    if faults:
        raise ValueError("not compressed as planned:\n" + "\n".join(faults))
    for group, total, kept in counted_groups(plan.sparse):
        leaf = group[0]
        match leaf.pattern:
            case NM(transposable=both):
                assert leaf.axis is not None
                # By its storage a compressed leaf obeys along its axis.
                axes = () if leaf.path in stored else (leaf.axis,)
                for axis in (*axes, *leaf.output[-1:] * both):
                    faults += _group_faults(leaf, leaves[leaf.path], kept, total, axis)
            case PerOutput():
                faults += _row_faults(leaf, leaves[leaf.path], kept)
            case _:
                faults += _count_faults(group, leaves, total, kept)
    if faults:
        raise ValueError(
            "not sparse as planned; mask_params(params, masks) makes it so:\n"
            + "\n".join(faults)
        )


def _group_faults(
    leaf: LeafPlan, weight: ArrayLike | Compressed, n: int, m: int, axis: int
) -> list[str]:
    """What is wrong with the groups along an axis of a leaf, if anything is."""
    assert leaf.shape is not None
    tile = tuple(m if i == axis else 1 for i in range(len(leaf.shape)))
    counts = np.asarray(_nonzero_sums(weight, tile))
    bad = counts > n
    if not bad.any():
        return []
    along = "" if axis == leaf.axis else f" along axis {axis}"
    group = np.argwhere(bad)[0]
    start = [int(i) for i in group]
    start[axis] *= m
    return [
        f"  {leaf.path!r} of shape {leaf.shape}, {leaf.decision}: {bad.sum()} of "
        f"{bad.size} groups keep more than {n}; the first, with "
        f"{counts[tuple(group)]}, starts at {tuple(start)}{along}"
    ]


def _row_faults(leaf: LeafPlan, weight: ArrayLike, kept: int) -> list[str]:
    """What is wrong with the outputs of a leaf, if anything is."""
    assert leaf.shape is not None
    row = tuple(1 if i in leaf.rows else n for i, n in enumerate(leaf.shape))
    counts = np.asarray(_nonzero_sums(weight, row))
    bad = counts > kept
    if not bad.any():
        return []
    first = tuple(int(i) for i in np.argwhere(bad)[0])
    return [
        f"  {leaf.path!r} of shape {leaf.shape}, {leaf.decision}: {bad.sum()} of "
        f"{bad.size} outputs keep more than {kept}; the first, with {counts[first]}, "
        f"starts at {first}"
    ]


def _count_faults(
    group: Sequence[LeafPlan], leaves: Mapping[str, Any], total: int, kept: int
) -> list[str]:
    """What is wrong with leaves of which a number is kept, if anything is."""
    found = sum(int(_nonzero_tiles(leaves[leaf.path], leaf.tile)) for leaf in group)
    if found <= kept:
        return []
    first, *more = group
    others = f" and {len(more)} more leaves" if more else ""
    unit = "weights" if math.prod(first.tile) == 1 else "of them"
    return [
        f"  {first.path!r} of shape {first.shape}{others}, {first.decision}: {found} "
        f"of {total} {unit} are not zero, {kept} may be"
    ]


@partial(jax.jit, static_argnums=1)
def _nonzero_sums(weight: jax.Array | Compressed, tile: tuple[int, ...]) -> jax.Array:
    """The number of non-zero weights in every tile."""
    weight = decompress(weight) if isinstance(weight, Compressed) else weight
    return reduce_tiles(partial(jnp.sum, dtype=jnp.int32), ~is_zero(weight), tile)


@partial(jax.jit, static_argnums=1)
def _nonzero_tiles(weight: jax.Array, tile: tuple[int, ...]) -> jax.Array:
    """The number of tiles that have a non-zero weight."""
    return jnp.sum(reduce_tiles(jnp.any, ~is_zero(weight), tile), dtype=jnp.uint32)
