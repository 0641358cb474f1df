"""Functions of groups, on each shard by itself.

The compiler gathers what a loop runs over, or a reshape merges, even where every group
lies within a shard. Here it is told, or shown, that groups know nothing of each other.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import jax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array


_Find = Callable[..., Array]


def by_shards(find: _Find, whole: Sequence[int], x: Array, *scalars: Array) -> Array:
    """`find(x, *scalars)` on each shard of `x`, over the axes of any mesh.

    Args:
      find: a function that returns an array of the shape of `x`, for any number of
        axes in front of those that it needs.
      whole: these axes of `x`, counted from the last, -1, are not cut: over automatic
        axes of a mesh they are gathered; over explicit ones the caller sees to it.
      x: an array of any shape.
      scalars: further operands.
    """
    kinds = jax.typeof(x).sharding.mesh.axis_types
    if AxisType.Explicit in kinds:
        return by_explicit_shards(find, x, *scalars)
    if AxisType.Manual in kinds:
        return find(x, *scalars)

    def batched(_, in_batched, x, *scalars):
        if any(in_batched[1:]):
            axes = [0 if batched else None for batched in in_batched]
            return jax.vmap(find, axes)(x, *scalars), True
        return by_shards(find, whole, x, *scalars), True

    axes = [x.ndim + axis for axis in whole]
    alone = custom_vmap(partition(find, x.ndim, axes, scalars=len(scalars)))
    alone.def_vmap(batched)
    return alone(x, *scalars)


def by_explicit_shards(find: _Find, x: Array, *scalars: Array) -> Array:
    """`find(x, *scalars)` on each shard of `x` over the explicit axes of a mesh."""
    sharding = jax.typeof(x).sharding
    # Those in use: others may be taken by a `vmap` around.
    names = [n if isinstance(n, tuple) else (n,) for n in sharding.spec if n]
    if not names:
        return find(x, *scalars)
    mapped = jax.shard_map(
        find,
        mesh=sharding.mesh,
        in_specs=(sharding.spec, *[PartitionSpec()] * len(scalars)),
        out_specs=sharding.spec,
        axis_names=set(chain(*names)),
        check_vma=False,
    )
    return mapped(x, *scalars)


def partition(
    find: _Find,
    ndim: int,
    whole: Sequence[int],
    *,
    resized: bool = False,
    scalars: int = 0,
) -> Callable[..., Any]:
    """`find` on each shard by itself over automatic axes; it cannot be vmapped.

    Args:
      find: a function of an array of `ndim` axes and of scalars.
      ndim: the number of axes.
      whole: these are gathered if they were cut.
      resized: whether the result has other sizes along them.
      scalars: the number of scalars.
    """
    axes = [f"a{i}" for i in range(ndim)]
    new = {f"a{i}": f"found{i}" for i in whole} if resized else {}
    found = [new.get(axis, axis) for axis in axes]
    split = custom_partitioning(find)

    def shard(mesh, operands, _):
        # The compiler may yet have cut what it was told to gather.
        spec = [*operands[0].sharding.spec, *[None] * ndim][:ndim]
        names = (None if i in whole else name for i, name in enumerate(spec))
        uncut = NamedSharding(mesh, PartitionSpec(*names))
        return mesh, find, uncut, (uncut, *(x.sharding for x in operands[1:]))

    split.def_partition(
        partition=shard,
        sharding_rule=f"{' '.join(axes)}{', ' * scalars} -> {' '.join(found)}",
        need_replication_factors=(*(axes[i] for i in whole), *new.values()),
    )
    return split
