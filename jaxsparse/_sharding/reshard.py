"""Groups, masks and the axes of a mesh.

Over automatic axes of a mesh the compiler moves data as it needs to. Over explicit axes
shardings are part of JAX's types, and an operation that would split a group between two
devices is an error, so the array is all-gathered along the group axis first.
"""

import math
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding, reshard
from jaxtyping import Array, PyTree


def names_along(sharding: NamedSharding, axis: int) -> tuple[str, ...]:
    """Returns the mesh axes over which an axis of an array is sharded."""
    names = sharding.spec[axis] if axis < len(sharding.spec) else None
    return names if isinstance(names, tuple) else (names,) if names else ()


def shards_along(sharding: NamedSharding, axis: int) -> int:
    """Returns the number of shards along an axis of an array."""
    return math.prod(sharding.mesh.shape[name] for name in names_along(sharding, axis))


def mask_sharding(
    sharding: NamedSharding, shape: tuple[int, ...], mask: tuple[int, ...]
) -> NamedSharding:
    """Returns the sharding of a mask: that of its weight, unless it splits bytes.

    Args:
      sharding: the sharding of the weight.
      shape: the shape of the weight.
      mask: the shape of the mask, bool or packed. A packed axis whose shards would
        split a byte is replicated.
    """
    spec = list(sharding.spec)
    for axis in range(len(spec)):
        keeps_bytes = shape[axis] % (8 * shards_along(sharding, axis)) == 0
        if shape[axis] != mask[axis] and not keeps_bytes:
            spec[axis] = None
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def gather_groups(x: Array, m: int, axis: int) -> Array:
    """All-gathers an array along `axis` if explicit shards would split its groups."""
    sharding = jax.typeof(x).sharding
    shards = shards_along(sharding, axis)
    if sharding.spec[axis] is None or x.shape[axis] % (shards * m) == 0:
        return x
    spec = [None if i == axis else names for i, names in enumerate(sharding.spec)]
    return reshard(x, NamedSharding(sharding.mesh, PartitionSpec(*spec)))


def replicate(x: Array) -> Array:
    """Returns an array that no explicit axis of a mesh shards."""
    sharding = jax.typeof(x).sharding
    if all(names is None for names in sharding.spec):
        return x
    return reshard(x, NamedSharding(sharding.mesh, PartitionSpec(*[None] * x.ndim)))


def reshard_like(x: Array, other: Array) -> Array:
    """Reshards an array over explicit axes like another array of its shape.

    If the other array is not sharded over explicit axes, `x` is returned as it is.
    """
    own, target = jax.typeof(x).sharding, jax.typeof(other).sharding
    is_explicit = any(names is not None for names in target.spec)
    return reshard(x, target) if is_explicit and own.spec != target.spec else x


def sharded_as_mask(mask: Array, weight: Array) -> Array:
    """Reshards a mask over explicit axes like its weight, unless that splits bytes."""
    own = jax.typeof(mask).sharding
    target = mask_sharding(jax.typeof(weight).sharding, weight.shape, mask.shape)
    return mask if own.spec == target.spec else reshard(mask, target)


def device_put_mask(mask: Array | None, weight: Any) -> Array | None:
    """Moves a mask to the devices of its weight; a traced mask is returned as it is.

    Over automatic axes the compiler chooses the sharding of a result, so it may differ
    from the weight's. A packed axis whose shards would split a byte is replicated.
    """
    # A tracer has no sharding, and takes long to say so: its error names the program.
    if mask is None or isinstance(mask, Tracer) or isinstance(weight, Tracer):
        return mask
    sharding = getattr(weight, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return mask
    target = mask_sharding(sharding, weight.shape, mask.shape)
    is_placed = mask.sharding.is_equivalent_to(target, mask.ndim)
    return mask if is_placed else jax.device_put(mask, target)


def device_put_like(x: Array, other: Any) -> Array:
    """Moves an array to the devices of another of its shape, if that is a `jax.Array`.

    To be called outside of a trace. Over automatic axes the compiler chooses the
    sharding of a result, so it may differ from the other array's.
    """
    # An array that is moved is committed, for which JAX compiles programs again.
    if not isinstance(other, jax.Array) or x.sharding == other.sharding:
        return x
    return jax.device_put(x, other.sharding)


def device_put_resized(x: Any, other: Any) -> Any:
    """Shards an array as one of another size is, if both are `jax.Array`.

    To be called outside of a trace. Axes that the shards do not divide are replicated.
    """
    if isinstance(x, np.ndarray) or isinstance(other, Tracer):
        return x
    sharding = getattr(other, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return x
    spec = [
        names if x.shape[axis] % shards_along(sharding, axis) == 0 else None
        for axis, names in enumerate(sharding.spec)
    ]
    return jax.device_put(x, NamedSharding(sharding.mesh, PartitionSpec(*spec)))


def commit_like(tree: PyTree, arrays: Iterable[Any]) -> PyTree:
    """Returns a tree on the single device to which some arrays are committed, if any.

    JAX compiles a program once for arrays that are committed and once for others. What
    is computed from committed arrays is committed, so the start of a running sum should
    be, too.
    """
    committed = (x for x in arrays if isinstance(x, jax.Array) and x.committed)
    shardings = {x.sharding for x in committed}
    match [*shardings]:
        case [SingleDeviceSharding() as sharding]:
            return jax.device_put(tree, sharding)
    return tree


def reshard_to(x: Array, other: Array) -> Array:
    """Reshards an array over explicit axes exactly like another one.

    If the other array is not sharded, neither is the result. Both branches of a
    `lax.cond` must agree in this.
    """
    own, target = jax.typeof(x).sharding, jax.typeof(other).sharding
    return x if own.spec == target.spec else reshard(x, target)
