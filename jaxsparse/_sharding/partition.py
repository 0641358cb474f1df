"""Functions of groups that run on each shard by itself.

XLA gathers an array that a loop runs over or that a reshape merges, even if every group
lies within one shard. These functions tell it that groups are independent.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
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
    return _partitioned(
        fn,
        rule,
        partition,
        need_replication_factors=tuple(replicated),
        decode_shardings=False,
    )


def partition_contraction(
    fn: Callable[..., Any], rule: str, contracted: Sequence[str]
) -> Callable[..., Any]:
    """Returns a function of arrays that contracts axes and runs on each shard.

    All of its results lack the same axes.

    The function has no batching rule: `jax.vmap` of it fails.

    Args:
      fn: takes arrays, or shards of them over automatic axes, and returns an array, or
        a list of arrays of one dtype.
      rule: the Shardy rule that names the axes, such as
        `"rows k, values out -> rows out"`.
      contracted: the axes that the results lack, in the order of the operands. Equal
        parts of them belong together, and the results for all parts add up to the
        whole results. If these axes are sharded, each shard computes its part, and an
        all-reduce adds up the parts in float32; of several shardings the last that
        suits all contracted axes is used. Contracted axes are all-gathered instead if
        their mesh axes shard other axes, if the parts would not be equal, or in
        float16, where partial results might overflow.
    """
    names, result_names = (
        [axes.split() for axes in side.split(",")] for side in rule.split("->")
    )

    def partition(mesh, operands, results):
        results, structure = jax.tree.flatten(results)
        # A result's sharding of an axis takes precedence, then the first operand's.
        entries: dict[str, Any] = {}
        sizes: dict[str, int] = {}
        arrays = zip([*result_names, *names], [*results, *operands], strict=True)
        for axes, x in arrays:
            # Without a mesh in JAX's sight there is no spec, and nothing is sharded.
            spec = [*getattr(x.sharding, "spec", ()), *[None] * len(axes)]
            entries = dict(zip(axes, spec, strict=False)) | entries
            sizes |= dict(zip(axes, x.shape, strict=True))
        common = None
        if results[0].dtype != jnp.float16:
            common = _common_entry(entries, sizes, contracted, mesh)
        entries |= dict.fromkeys(contracted, common)

        def fn_and_sum(*shards: Array) -> Any:
            parts = fn(*shards)
            if common is None:
                return parts
            cast = lambda dtype, tree: jax.tree.map(lambda x: x.astype(dtype), tree)
            wide = lax.psum(cast(jnp.float32, parts), common)
            return cast(results[0].dtype, wide)

        def place(axes: list[str]) -> NamedSharding:
            return NamedSharding(mesh, PartitionSpec(*map(entries.get, axes)))

        outputs = structure.unflatten(place(axes) for axes in result_names)
        return mesh, fn_and_sum, outputs, tuple(place(axes) for axes in names)

    return _partitioned(fn, rule, partition, reduction_factors=tuple(contracted))


def _common_entry(
    entries: dict[str, Any], sizes: dict[str, int], contracted: Sequence[str], mesh: Any
) -> Any:
    """Returns the last entry that can shard all contracted axes alike, or None."""
    others = entries.keys() - {*contracted}
    taken = {name for axis in others for name in _mesh_axes(entries[axis])}

    def fits(entry: Any) -> bool:
        parts = math.prod(mesh.shape[name] for name in _mesh_axes(entry))
        equal = all(sizes[axis] % parts == 0 for axis in contracted)
        return equal and not taken & {*_mesh_axes(entry)}

    candidates = [entries[axis] for axis in contracted if entries[axis]]
    return next(filter(fits, reversed(candidates)), None)


def _mesh_axes(entry: Any) -> tuple[str, ...]:
    """Returns the mesh axes in one entry of a PartitionSpec."""
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def _partitioned(
    fn: Callable[..., Any], rule: str, partition: Callable[..., Any], **options: Any
) -> Callable[..., Any]:
    if not getattr(jax.config, "jax_use_shardy_partitioner", True):
        return fn  # the older partitioner does not read Shardy rules
    partitioned = custom_partitioning(fn)
    partitioned.def_partition(partition=partition, sharding_rule=rule, **options)
    return partitioned
