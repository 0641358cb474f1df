"""Products that contract axes of their operands, on each shard by itself."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxsparse._sharding.partition import mesh_axes, partitioned


class Spare(NamedTuple):
    """A further operand of a product, of which all but its first can be restored.

    Where those must be moved between devices, this one is moved instead.

    Attributes:
      axes: the names of its axes, as in the rule.
      like: for some of them the axis of another operand of which equal parts belong
        together. Every shard needs those in full that are not in the rule either.
      restore: returns the operands but the first, or shards of them.
    """

    axes: str
    like: Mapping[str, str]
    restore: Callable[[Array], Sequence[Array]]


def partition_contraction(
    fn: Callable[..., Any],
    rule: str,
    contracted: Sequence[str],
    spare: Spare | None = None,
) -> Callable[..., Any]:
    """Returns a function of arrays that contracts axes and runs on each shard.

    All of its results lack the same axes.

    The function has no batching rule: `jax.vmap` of it fails.

    Args:
      fn: takes arrays, or shards of them over automatic axes, and returns an array, or
        a list of arrays of one dtype.
      rule: the Shardy rule that names the axes, such as
        `"rows k, values out -> rows out"`. Every shard needs those in full that are
        neither contracted nor in the results.
      contracted: the axes that the results lack, in the order of the operands. Equal
        parts of them belong together, and the results for all parts add up to the
        whole results. If these axes are sharded, each shard computes its part, and an
        all-reduce adds up the parts in float32; of several shardings the last that
        suits all contracted axes is used. Contracted axes are all-gathered instead if
        their mesh axes shard other axes, if the parts would not be equal, or in
        float16, where partial results might overflow.
      spare: a further operand of the function, the last, which `fn` does not take.
    """
    sides = rule.split("->")
    names, result_names = ([axes.split() for axes in x.split(",")] for x in sides)
    partial = {*contracted, *chain(*result_names)}  # axes of which a shard has a part
    inner = tuple(axis for axis in dict.fromkeys(chain(*names)) if axis not in partial)
    if spare is not None:
        rule = f"{sides[0]}, {spare.axes} -> {sides[1]}"

    def partition(mesh, operands, results):
        results, structure = jax.tree.flatten(results)
        own = operands[: len(names)]
        # A result's sharding of an axis takes precedence, then the first operand's.
        pairs = [*zip([*result_names, *names], [*results, *own], strict=True)]
        entries: dict[str, Any] = {}
        for axes, x in pairs:
            entries = dict(zip(axes, _entries(x), strict=True)) | entries
        sizes = {a: n for axes, x in pairs for a, n in zip(axes, x.shape, strict=True)}
        common = None
        if results[0].dtype != jnp.float16:
            common = _common_entry(entries, sizes, contracted, mesh)
        entries |= dict.fromkeys(contracted, common) | dict.fromkeys(inner)

        def place(axes: list[str]) -> NamedSharding:
            return NamedSharding(mesh, PartitionSpec(*map(entries.get, axes)))

        needed, restores = [*map(place, names)], False
        if spare is not None:
            entries |= {axis: entries[other] for axis, other in spare.like.items()}
            needed.append(place(spare.axes.split()))
            needed, restores = _choose_moved(operands, needed)

        def fn_and_sum(*shards: Array) -> Any:
            own = shards[: len(names)]
            if spare is not None and restores:
                own = (own[0], *spare.restore(shards[-1]))
            parts = fn(*own)
            if common is None:
                return parts
            cast = lambda dtype, tree: jax.tree.map(lambda x: x.astype(dtype), tree)
            wide = lax.psum(cast(jnp.float32, parts), common)
            return cast(results[0].dtype, wide)

        outputs = structure.unflatten(map(place, result_names))
        return mesh, fn_and_sum, outputs, tuple(needed)

    whole = lambda *operands: fn(*operands[: len(names)])
    factors = {
        "reduction_factors": tuple(contracted),
        "need_replication_factors": inner,
    }
    return partitioned(whole, rule, partition, **factors)


def _choose_moved(
    operands: Sequence[Any], needed: Sequence[NamedSharding]
) -> tuple[list[NamedSharding], bool]:
    """Returns where operands go, the last of them spare, and whether it is moved.

    What is not moved stays where it is.
    """
    stay = [
        NamedSharding(sharding.mesh, PartitionSpec(*_entries(x)))
        for x, sharding in zip(operands, needed, strict=True)
    ]
    is_moved = any(map(_is_moved, operands[1:-1], needed[1:-1]))
    if is_moved and _is_even(operands[-1].shape, needed[-1]):
        return [needed[0], *stay[1:-1], needed[-1]], True
    return [*needed[:-1], stay[-1]], False


def _entries(x: Any) -> list[Any]:
    """Returns what shards each axis of an array."""
    # Without a mesh in JAX's sight there is no spec, and nothing is sharded.
    return [*getattr(x.sharding, "spec", ()), *[None] * x.ndim][: x.ndim]


def _is_moved(x: Any, needed: NamedSharding) -> bool:
    pairs = zip(_entries(x), needed.spec, strict=True)
    return any(mesh_axes(own) != mesh_axes(target) for own, target in pairs)


def _is_even(shape: Sequence[int], sharding: NamedSharding) -> bool:
    parts = [
        math.prod(sharding.mesh.shape[name] for name in mesh_axes(entry))
        for entry in sharding.spec
    ]
    return all(size % n == 0 for size, n in zip(shape, parts, strict=True))


def _common_entry(
    entries: dict[str, Any], sizes: dict[str, int], contracted: Sequence[str], mesh: Any
) -> Any:
    """Returns the last entry that can shard all contracted axes alike, or None."""
    others = entries.keys() - {*contracted}
    taken = {name for axis in others for name in mesh_axes(entries[axis])}

    def fits(entry: Any) -> bool:
        parts = math.prod(mesh.shape[name] for name in mesh_axes(entry))
        equal = all(sizes[axis] % parts == 0 for axis in contracted)
        return equal and not taken & {*mesh_axes(entry)}

    candidates = [entries[axis] for axis in contracted if entries[axis]]
    return next(filter(fits, reversed(candidates)), None)
