"""Functions of groups, on each shard by itself.

The compiler gathers what a loop runs over, or a reshape merges, even where every group
lies within a shard. Here it is told, or shown, that groups know nothing of each other.
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


_Find = Callable[..., Array]


def map_shards(find: _Find, whole: Sequence[int], x: Array, *scalars: Array) -> Array:
    """`find(x, *scalars)` on each shard of `x`, over the axes of any mesh.

    Args:
      find: a function that returns an array of the shape of `x`, for any number of
        axes in front of those that it needs.
      whole: these axes of `x`, counted from the last, -1, are not cut: over automatic
        axes of a mesh they are gathered; over explicit ones the caller sees to it.
      x: an array of any shape.
      scalars: further operands.
    """
    kinds = _axis_types(x)
    if AxisType.Explicit in kinds:
        return map_explicit_shards(find, x, *scalars)
    if AxisType.Manual in kinds:
        return find(x, *scalars)

    def batched(_, in_batched, x, *scalars):
        if any(in_batched[1:]):
            axes = [0 if batched else None for batched in in_batched]
            return jax.vmap(find, axes)(x, *scalars), True
        return map_shards(find, whole, x, *scalars), True

    axes = [f"a{i}" for i in range(x.ndim)]
    rule = f"{' '.join(axes)}{', ' * len(scalars)} -> {' '.join(axes)}"
    alone = custom_vmap(partition_unary(find, rule, [axes[i] for i in whole]))
    alone.def_vmap(batched)
    return alone(x, *scalars)


def map_explicit_shards(find: _Find, x: Array, *scalars: Array) -> Array:
    """`find(x, *scalars)` on each shard of `x` over the explicit axes of a mesh."""
    sharding = jax.typeof(x).sharding
    # Those in use: others may be taken by a `vmap` around.
    names = {name for axis in range(x.ndim) for name in names_along(sharding, axis)}
    if not names:
        return find(x, *scalars)
    mapped = jax.shard_map(
        find,
        mesh=sharding.mesh,
        in_specs=(sharding.spec, *[PartitionSpec()] * len(scalars)),
        out_specs=sharding.spec,
        axis_names=names,
        check_vma=False,
    )
    return mapped(x, *scalars)


def is_automatic(x: Array) -> bool:
    """Whether the compiler alone decides how the array is sharded."""
    return all(kind is AxisType.Auto for kind in _axis_types(x))


def _axis_types(x: Array) -> tuple[AxisType, ...]:
    """The kinds of the mesh's axes; an array of NumPy's is on none, but within one."""
    meshes = jax.typeof(x).sharding.mesh, jax.sharding.get_abstract_mesh()
    return tuple(kind for mesh in meshes for kind in mesh.axis_types)


def partition_unary(find: _Find, rule: str, whole: Sequence[str]) -> Callable[..., Any]:
    """A function of an array, and of scalars, on each shard; it cannot be vmapped.

    Args:
      find: takes an array and scalars, or a shard over automatic axes and scalars, and
        returns an array with as many axes.
      rule: which axes belong together, as in `"a b, -> a c"`.
      whole: the axes of which each shard needs all; they are gathered if they were cut.
    """
    given, *_ = rule.replace("->", ",").split(",")
    places = [i for i, axis in enumerate(given.split()) if axis in whole]

    def shard(mesh, operands, result):
        x, *scalars = operands
        everywhere = NamedSharding(mesh, PartitionSpec())

        def is_whole(sharding: Any) -> bool:
            shape = sharding.shard_shape(x.shape)
            return all(shape[i] == x.shape[i] for i in places)

        # The compiler may yet have cut what it was told to gather.
        found = [each.sharding for each in (result, x) if is_whole(each.sharding)]
        own = [*found, everywhere][0]
        return mesh, find, own, (own, *[everywhere] * len(scalars))

    # What a reshape has cut may have no PartitionSpec, so none is asked for.
    return _partitioned(
        find,
        rule,
        shard,
        need_replication_factors=tuple(whole),
        decode_shardings=False,
    )


def partition_contraction(
    find: _Find, rule: str, summed: Sequence[str]
) -> Callable[..., Any]:
    """A function of arrays on each shard by itself; it cannot be vmapped.

    Args:
      find: takes arrays, or shards of them over automatic axes, and returns one.
      rule: which axes belong together, as in `"rows k, values out -> rows out"`.
      summed: the axes that the result has not, in their order, of which equal parts
        belong together: results for parts add up to that of all. Where they are cut,
        shards do that, in float32, by the last cut that can serve. None can where the
        same axes of the mesh cut other axes, where parts would not be equal, or in
        float16, where they might overflow: then these axes are gathered.
    """
    names = [axes.split() for axes in rule.replace("->", ",").split(",")]

    def shard(mesh, operands, result):
        # Each axis as the result has it, or the first operand that has it.
        cuts: dict[str, Any] = {}
        sizes: dict[str, int] = {}
        sharded = zip([names[-1], *names[:-1]], [result, *operands], strict=True)
        for axes, x in sharded:
            # There is none where JAX knows of no mesh; nothing is cut then.
            spec = [*getattr(x.sharding, "spec", ()), *[None] * len(axes)]
            cuts = dict(zip(axes, spec, strict=False)) | cuts
            sizes |= dict(zip(axes, x.shape, strict=True))
        narrow = result.dtype == jnp.float16
        along = None if narrow else _common_cut(cuts, sizes, summed, mesh)
        cuts |= dict.fromkeys(summed, along)

        def find_sum(*shards: Array) -> Array:
            part = find(*shards)
            if along is None:
                return part
            return lax.psum(part.astype(jnp.float32), along).astype(part.dtype)

        specs = [PartitionSpec(*map(cuts.get, axes)) for axes in names]
        *inputs, output = [NamedSharding(mesh, spec) for spec in specs]
        return mesh, find_sum, output, tuple(inputs)

    return _partitioned(find, rule, shard, reduction_factors=tuple(summed))


def _common_cut(
    cuts: dict[str, Any], sizes: dict[str, int], summed: Sequence[str], mesh: Any
) -> Any:
    """How all axes that are summed over can be cut; None if they cannot."""
    taken = {name for axis in cuts.keys() - {*summed} for name in _names(cuts[axis])}

    def fits(cut: Any) -> bool:
        parts = math.prod(mesh.shape[name] for name in _names(cut))
        equal = all(sizes[axis] % parts == 0 for axis in summed)
        return equal and not taken & {*_names(cut)}

    found = [cuts[axis] for axis in summed if cuts[axis] and fits(cuts[axis])]
    return found[-1] if found else None


def _names(cut: Any) -> tuple[str, ...]:
    """The axes of a mesh in one place of a PartitionSpec."""
    return () if cut is None else cut if isinstance(cut, tuple) else (cut,)


def _partitioned(
    find: _Find, rule: str, shard: Callable[..., Any], **options: Any
) -> Callable[..., Any]:
    if not getattr(jax.config, "jax_use_shardy_partitioner", True):
        return find  # the older partitioner knows no rules
    split = custom_partitioning(find)
    split.def_partition(partition=shard, sharding_rule=rule, **options)
    return split
