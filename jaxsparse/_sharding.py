"""Groups and the explicit axes of a mesh, whose shardings are part of JAX's types.

Over automatic axes the compiler moves what it needs; over explicit ones an operation
that would cut a group between two devices is an error, so the group is gathered first.
"""

import math
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec, reshard
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
