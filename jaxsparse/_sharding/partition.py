"""Functions of groups that run on each shard by itself.

XLA gathers an array that a loop runs over or that a reshape merges, even if every group
lies within one shard. These functions tell it that groups are independent.
"""

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxsparse._sharding.reshard import names_along


_ArrayFn = Callable[..., Array]


def map_shards(
    fn: _ArrayFn, replicated: Sequence[int], x: Array, *scalars: Array
) -> Array:
    """Computes `fn(x, *scalars)` on each shard of `x`, over the axes of any mesh.

    Args:
      fn: returns an array of the shape of `x`, with any number of leading batch axes.
      replicated: the axes of `x` that every shard needs in full, as negative numbers.
        Over automatic axes of a mesh they are all-gathered; over explicit ones the
        caller makes sure that they are not sharded.
      x: an array of any shape.
      scalars: further operands.
    """
    axis_types = _axis_types(x)
    if AxisType.Explicit in axis_types:
        return map_explicit_shards(fn, x, *scalars)
    if AxisType.Manual in axis_types:
        return fn(x, *scalars)

    def batching_rule(_, in_batched, x, *scalars):
        if any(in_batched[1:]):
            in_axes = [0 if is_batched else None for is_batched in in_batched]
            return jax.vmap(fn, in_axes)(x, *scalars), True
        return map_shards(fn, replicated, x, *scalars), True

    axes = [f"a{i}" for i in range(x.ndim)]
    rule = f"{' '.join(axes)}{', ' * len(scalars)} -> {' '.join(axes)}"
    mapped = custom_vmap(partition_unary(fn, rule, [axes[i] for i in replicated]))
    mapped.def_vmap(batching_rule)
    return mapped(x, *scalars)


def map_explicit_shards(fn: _ArrayFn, x: Array, *scalars: Array) -> Array:
    """Computes `fn(x, *scalars)` on each shard of `x` over explicit axes of a mesh."""
    sharding = jax.typeof(x).sharding
    # Only the axes in use: an enclosing `vmap` may occupy others.
    names = {name for axis in range(x.ndim) for name in names_along(sharding, axis)}
    if not names:
        return fn(x, *scalars)
    mapped = jax.shard_map(
        fn,
        mesh=sharding.mesh,
        in_specs=(sharding.spec, *[PartitionSpec()] * len(scalars)),
        out_specs=sharding.spec,
        axis_names=names,
        check_vma=False,
    )
    return mapped(x, *scalars)


def is_automatic(x: Array) -> bool:
    """Whether the compiler alone decides how the array is sharded."""
    return all(axis_type is AxisType.Auto for axis_type in _axis_types(x))


def _axis_types(x: Array) -> tuple[AxisType, ...]:
    """Returns the types of all mesh axes: of the array's mesh and the current one.

    A NumPy array has no mesh of its own.
    """
    meshes = jax.typeof(x).sharding.mesh, jax.sharding.get_abstract_mesh()
    return tuple(axis_type for mesh in meshes for axis_type in mesh.axis_types)


def partition_unary(
    fn: _ArrayFn, rule: str, replicated: Sequence[str]
) -> Callable[..., Any]:
    """Returns a function of an array and scalars that runs on each shard by itself.

    The function has no batching rule: `jax.vmap` of it fails.

    Args:
      fn: takes an array, or a shard of it over automatic axes, and scalars; returns an
        array with the same number of axes.
      rule: the Shardy rule that names the axes, such as `"a b, -> a c"`.
      replicated: the axes that every shard needs in full; sharded ones are
        all-gathered.
    """
    operand, *_ = rule.replace("->", ",").split(",")
    indices = [i for i, axis in enumerate(operand.split()) if axis in replicated]

    def partition(mesh, operands, result):
        x, *scalars = operands
        unsharded = NamedSharding(mesh, PartitionSpec())

        def is_replicated(sharding: Any) -> bool:
            shape = sharding.shard_shape(x.shape)
            return all(shape[i] == x.shape[i] for i in indices)

        # In spite of the rule the compiler may propose a sharding of these axes.
        proposed = (result.sharding, x.sharding)
        sharding = next(filter(is_replicated, proposed), unsharded)
        return mesh, fn, sharding, (sharding, *[unsharded] * len(scalars))

    # After a reshape a sharding may have no PartitionSpec, so they are not decoded.
    return partitioned(
        fn,
        rule,
        partition,
        need_replication_factors=tuple(replicated),
        decode_shardings=False,
    )


def partition_groups(
    fn: Callable[..., tuple[Array, ...]], rule: str, **sizes: int
) -> Callable[..., Any]:
    """Returns a function of groups of one array that runs on each shard by itself.

    The function has no batching rule: `jax.vmap` of it fails.

    Args:
      fn: takes arrays, or shards of them over automatic axes, and returns several.
      rule: the Shardy rule that names the axes, such as
        `"(groups four) out -> (groups two) out, groups out"`. An axis of several
        factors is sharded along the first of them only, and as the first operand is.
        If its shards would split a group, it is all-gathered.
      **sizes: the sizes of the factors of such axes; others are ignored.
    """
    sides = [
        [_axis_factors(axes, sizes) for axes in side.split(",")]
        for side in rule.split("->")
    ]
    operands, results = sides
    axes = [axis for side in sides for array in side for axis in array]
    compounds = re.findall(r"\(\w+ (.*?)\)", rule)
    inner = dict.fromkeys(name for names in compounds for name in names.split())

    def partition(mesh, arrays, _):
        # Without a mesh in JAX's sight there is no spec, and nothing is sharded.
        x = arrays[0]
        spec = [*getattr(x.sharding, "spec", ()), *[None] * x.ndim]
        entries: dict[str, Any] = {}
        for (name, *_), size, entry in zip(operands[0], x.shape, spec, strict=False):
            shards = math.prod(mesh.shape[axis] for axis in mesh_axes(entry))
            groups = sizes.get(name, int(size))
            splits_groups = name in inner or groups % shards
            entries[name] = None if splits_groups else entry

        def sharding(array: list[list[str]]) -> NamedSharding:
            return NamedSharding(
                mesh, PartitionSpec(*[entries.get(a[0]) for a in array])
            )

        return mesh, fn, tuple(map(sharding, results)), tuple(map(sharding, operands))

    # JAX wants the sizes of those factors alone that are no axis by themselves.
    known = {axis[0] for axis in axes if len(axis) == 1}
    unknown = {name for axis in axes for name in axis} - known
    return partitioned(
        fn,
        " -> ".join(", ".join(map(_axes_text, side)) for side in sides),
        partition,
        need_replication_factors=tuple(inner),
        **{name: sizes[name] for name in unknown},
    )


def partition_rows(
    fn: Callable[[tuple[str, ...], Array], tuple[Array, Array]], ndim: int
) -> Callable[..., Any]:
    """Returns a function of rows that runs on each shard by itself.

    The function has no batching rule: `jax.vmap` of it fails.

    Args:
      fn: takes the mesh axes that shard the rows themselves, and an array or a shard
        of it over automatic axes, whose last axis are the rows. Returns an array of
        its shape, and one with an axis of size one in place of the last.
      ndim: the number of axes of the array.
    """
    leading = " ".join(f"r{i}" for i in range(ndim - 1))

    def partition(mesh, arrays, _):
        (x,) = arrays
        # Without a mesh in JAX's sight there is no spec, and nothing is sharded.
        *spec, last = [*getattr(x.sharding, "spec", ()), *[None] * ndim][:ndim]
        if x.shape[-1] % math.prod(mesh.shape[axis] for axis in mesh_axes(last)):
            last = None  # the parts would not be equal
        along = NamedSharding(mesh, PartitionSpec(*spec, last))
        across = NamedSharding(mesh, PartitionSpec(*spec, None))
        return mesh, partial(fn, mesh_axes(last)), (along, across), (along,)

    rule = f"{leading} k -> {leading} k, {leading} one"
    return partitioned(partial(fn, ()), rule, partition)


def _axis_factors(axes: str, sizes: dict[str, int]) -> list[list[str]]:
    """Returns the factors of each axis, without those of size one beside others."""
    factors = [axis.strip("()").split() for axis in re.findall(r"\(.*?\)|\w+", axes)]
    return [
        axis[1:] if len(axis) > 1 and sizes[axis[0]] == 1 else axis for axis in factors
    ]


def _axes_text(axes: list[list[str]]) -> str:
    return " ".join(a[0] if len(a) == 1 else f"({' '.join(a)})" for a in axes)


def mesh_axes(entry: Any) -> tuple[str, ...]:
    """Returns the mesh axes in one entry of a PartitionSpec."""
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def partitioned(
    fn: Callable[..., Any], rule: str, partition: Callable[..., Any], **options: Any
) -> Callable[..., Any]:
    """Returns a function that is partitioned by a Shardy rule and JAX's callback."""
    if not getattr(jax.config, "jax_use_shardy_partitioner", True):
        return fn  # the older partitioner does not read Shardy rules
    partitioned = custom_partitioning(fn)
    partitioned.def_partition(partition=partition, sharding_rule=rule, **options)
    return partitioned
