"""Groups and the explicit axes of a mesh, whose shardings are part of JAX's types.

Over automatic axes the compiler moves what it needs; over explicit ones an operation
that would cut a group between two devices is an error, so the group is gathered first.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding, PartitionSpec, reshard
from jaxtyping import Array


def whole_groups(x: Array, m: int, axis: int) -> Array:
    """The same array, gathered along `axis` where shards do not hold whole groups."""
    sharding = jax.typeof(x).sharding
    names = sharding.spec[axis]
    if names is None:
        return x
    over = names if isinstance(names, tuple) else (names,)
    shards = math.prod(sharding.mesh.shape[name] for name in over)
    if x.shape[axis] % (shards * m) == 0:
        return x
    spec = [None if i == axis else names for i, names in enumerate(sharding.spec)]
    return reshard(x, NamedSharding(sharding.mesh, PartitionSpec(*spec)))


def gathered(x: Array) -> Array:
    """The same array, not sharded over explicit axes."""
    sharding = jax.typeof(x).sharding
    if all(names is None for names in sharding.spec):
        return x
    return reshard(x, NamedSharding(sharding.mesh, PartitionSpec(*[None] * x.ndim)))


def sharded_like(x: Array, other: Array) -> Array:
    """The same array, sharded over explicit axes as another of its shape is."""
    mine, wanted = jax.typeof(x).sharding, jax.typeof(other).sharding
    explicit = any(names is not None for names in wanted.spec)
    return reshard(x, wanted) if explicit and mine.spec != wanted.spec else x


def placed_like(x: Array, other: Any) -> Array:
    """The same array where another of its shape is, if that is an array of JAX.

    It runs outside of traces: over automatic axes the compiler puts results anywhere.
    """
    return jax.device_put(x, other.sharding) if isinstance(other, jax.Array) else x


def resharded(x: Array, other: Array) -> Array:
    """The same array, sharded over explicit axes exactly as another is, or not at all.

    Both branches of a `lax.cond` have to agree in it.
    """
    mine, wanted = jax.typeof(x).sharding, jax.typeof(other).sharding
    return x if mine.spec == wanted.spec else reshard(x, wanted)


def is_automatic(x: Array) -> bool:
    """Whether the compiler alone decides how the array is sharded."""
    axes = jax.typeof(x).sharding.mesh.axis_types
    return all(kind is AxisType.Auto for kind in axes)


def by_shards(fn: Callable[..., Array], rule: str, *, whole: Sequence[str]):
    """A function of arrays that runs on each shard by itself, over automatic axes.

    Args:
      fn: takes arrays, or shards of them, and returns one.
      rule: which axes belong together, as in `"rows k, k out -> rows out"`.
      whole: the axes of which each shard needs all; they are gathered if they were cut.
    """
    split = custom_partitioning(fn)
    names = [operand.split() for operand in rule.split(" -> ")[0].split(", ")]

    def partition(mesh, operands, result):
        # Axes that are summed over come cut, although they are needed whole.
        shardings = [
            NamedSharding(mesh, PartitionSpec(*_without(axes, x.sharding.spec, whole)))
            for axes, x in zip(names, operands, strict=True)
        ]
        return mesh, fn, result.sharding, tuple(shardings)

    split.def_partition(
        partition=partition, sharding_rule=rule, need_replication_factors=tuple(whole)
    )
    return split


def _without(axes: Sequence[str], spec: PartitionSpec, whole: Sequence[str]):
    padded = [*spec, *[None] * (len(axes) - len(spec))]
    return [
        None if axis in whole else cut for axis, cut in zip(axes, padded, strict=True)
    ]
