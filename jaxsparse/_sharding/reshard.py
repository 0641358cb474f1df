"""Groups, masks and the axes of a mesh.

Over automatic axes the compiler moves what it needs; over explicit ones, whose
shardings are part of JAX's types, an operation that would cut a group between two
devices is an error, so the group is gathered first.
"""

import math
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec, reshard
from jaxtyping import Array


def names_along(sharding: NamedSharding, axis: int) -> tuple[str, ...]:
    """The axes of the mesh over which a sharding cuts an axis."""
    names = sharding.spec[axis] if axis < len(sharding.spec) else None
    return names if isinstance(names, tuple) else (names,) if names else ()


def shards_along(sharding: NamedSharding, axis: int) -> int:
    """Into how many pieces a sharding cuts an axis."""
    return math.prod(sharding.mesh.shape[name] for name in names_along(sharding, axis))


def mask_sharding(
    sharding: NamedSharding, shape: tuple[int, ...], mask: tuple[int, ...]
) -> NamedSharding:
    """The sharding of a mask: its weight's, but where that would cut packed bytes.

    Args:
      sharding: the weight's.
      shape: the weight's.
      mask: the shape of the mask, of bools or packed.
    """
    names = list(sharding.spec)
    for axis in range(len(names)):
        whole = shape[axis] % (8 * shards_along(sharding, axis)) == 0
        if shape[axis] != mask[axis] and not whole:
            names[axis] = None
    return NamedSharding(sharding.mesh, PartitionSpec(*names))


def gather_groups(x: Array, m: int, axis: int) -> Array:
    """The same array, gathered along `axis` where shards do not hold whole groups."""
    sharding = jax.typeof(x).sharding
    shards = shards_along(sharding, axis)
    if sharding.spec[axis] is None or x.shape[axis] % (shards * m) == 0:
        return x
    spec = [None if i == axis else names for i, names in enumerate(sharding.spec)]
    return reshard(x, NamedSharding(sharding.mesh, PartitionSpec(*spec)))


def replicate(x: Array) -> Array:
    """The same array, not sharded over explicit axes."""
    sharding = jax.typeof(x).sharding
    if all(names is None for names in sharding.spec):
        return x
    return reshard(x, NamedSharding(sharding.mesh, PartitionSpec(*[None] * x.ndim)))


def reshard_like(x: Array, other: Array) -> Array:
    """The same array, sharded over explicit axes as another of its shape is."""
    mine, wanted = jax.typeof(x).sharding, jax.typeof(other).sharding
    explicit = any(names is not None for names in wanted.spec)
    return reshard(x, wanted) if explicit and mine.spec != wanted.spec else x


def sharded_as_mask(mask: Array, weight: Array) -> Array:
    """A mask sharded over explicit axes as its weight is, as far as bytes are whole."""
    mine, own = jax.typeof(mask).sharding, jax.typeof(weight).sharding
    wanted = mask_sharding(own, weight.shape, mask.shape)
    return mask if mine.spec == wanted.spec else reshard(mask, wanted)


def device_put_mask(mask: Array | None, weight: Any) -> Array | None:
    """A mask where its weight is, as far as bytes are whole; a traced one as it is.

    Over automatic axes the compiler puts results anywhere.
    """
    # Asked for its sharding, a tracer takes time to say that it has none.
    if mask is None or isinstance(mask, Tracer) or isinstance(weight, Tracer):
        return mask
    own = getattr(weight, "sharding", None)
    if not isinstance(own, NamedSharding):
        return mask
    wanted = mask_sharding(own, weight.shape, mask.shape)
    same = mask.sharding.is_equivalent_to(wanted, mask.ndim)
    return mask if same else jax.device_put(mask, wanted)


def device_put_like(x: Array, other: Any) -> Array:
    """The same array where another of its shape is, if that is an array of JAX.

    It runs outside of traces: over automatic axes the compiler puts results anywhere.
    """
    return jax.device_put(x, other.sharding) if isinstance(other, jax.Array) else x


def reshard_to(x: Array, other: Array) -> Array:
    """The same array, sharded over explicit axes exactly as another is, or not at all.

    Both branches of a `lax.cond` have to agree in it.
    """
    mine, wanted = jax.typeof(x).sharding, jax.typeof(other).sharding
    return x if mine.spec == wanted.spec else reshard(x, wanted)
