"""Which shardings cut what a pattern decides as a whole, and what would not."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jaxsparse._patterns import NM, Channel, PerOutput
from jaxsparse._plans import (
    LeafPlan,
    PlanLike,
    plan_for,
)
from jaxsparse._sharding import names_along, shards_along
from jaxsparse._trees import (
    Tabular,
    flatten,
    fold,
    shape_text,
)


@dataclass(frozen=True)
class LeafSharding:
    """How one leaf that is pruned is sharded.

    Attributes:
      path: the canonical path.
      shape: the leaf's shape.
      spec: how it is sharded; None where it has no `NamedSharding`.
      cut: what shards cut, so that devices talk to each other when the mask is
        searched; empty where nothing is.
      instead: a sharding over the same axes of the mesh that cuts nothing, None where
        nothing is cut. Axes for which there is no room are left out.
    """

    path: str
    shape: tuple[int, ...]
    spec: PartitionSpec | None
    cut: str
    instead: PartitionSpec | None


@dataclass(frozen=True)
class ShardingReport(Tabular):
    """A report on every leaf that is pruned. Print it for a table.

    Attributes:
      leaves: one `LeafSharding` a leaf.
    """

    leaves: tuple[LeafSharding, ...]

    def __iter__(self) -> Iterator[LeafSharding]:
        return iter(self.leaves)

    def _table(self):
        header = ("leaf", "shape", "sharding", "what is cut", "instead")
        return header, fold((leaf.path, _cells(leaf)) for leaf in self.leaves)


def sharding_report(params: PyTree, plan: PlanLike = "2:4") -> ShardingReport:
    """Reports for which leaves a search sends something, why, and the remedy.

    A mask is found without communication where every shard holds whole groups, and
    whole bytes of the packed mask, of eight weights along the group axis. Where shards
    cut them the result is the same, but the search gathers the leaf along that axis,
    and its packed mask is not sharded along it. Steps of an optimizer gather nothing.
    Of outputs, blocks and channels that are cut over automatic axes of a mesh only
    counts or sums are sent.

    Args:
      params: a tree of arrays, or of `jax.ShapeDtypeStruct` with shardings.
      plan: a plan, rules or a pattern.

    Returns:
      A `ShardingReport` on the leaves that are pruned.

    Raises:
      ValueError, TypeError: the plan does not fit.

    >>> import jax
    >>> mesh = jax.sharding.AbstractMesh((8,), ("data",))
    >>> rows = NamedSharding(mesh, PartitionSpec("data", None))
    >>> kernel = jax.ShapeDtypeStruct((32, 16), "float32", sharding=rows)
    >>> (leaf,) = sharding_report({"kernel": kernel}, "2:4")
    >>> print(leaf.cut)
    8 shards of 4 along axis 0 cut bytes of 8
    >>> leaf.instead == PartitionSpec(None, "data")
    True
    """
    leaves, _ = flatten(params)
    planned = plan_for(params, plan).sparse
    return ShardingReport(tuple(_report(leaf, leaves[leaf.path]) for leaf in planned))


def _report(leaf: LeafPlan, weight: Any) -> LeafSharding:
    assert leaf.shape is not None
    sharding = getattr(weight, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return LeafSharding(leaf.path, leaf.shape, None, "", None)
    cuts = []
    for axis, unit in _units(leaf).items():
        size, shards = leaf.shape[axis], shards_along(sharding, axis)
        if shards > 1 and size % (shards * unit.both):
            of_what = f"{unit.name} of {unit.size}"
            what = of_what if size % (shards * unit.size) else "bytes of 8"
            cuts.append(
                f"{shards} shards of {size // shards} along axis {axis} cut {what}"
            )
    instead = _uncut(leaf, sharding) if cuts else None
    return LeafSharding(
        leaf.path, leaf.shape, sharding.spec, " and ".join(cuts), instead
    )


class _Unit(NamedTuple):
    """What has to be whole along an axis.

    Attributes:
      name: what it is called.
      size: how many weights it has along the axis.
      both: how many make whole ones and whole bytes of a packed mask.
    """

    name: str
    size: int
    both: int


def _units(leaf: LeafPlan) -> dict[int, _Unit]:
    """What has to be whole along which axes."""
    assert leaf.shape is not None
    assert leaf.axis is not None
    sizes = dict(enumerate(leaf.tile))
    match leaf.pattern:
        case NM(m=m, transposable=both):
            name, along = (
                "groups",
                (leaf.axis, leaf.output[-1]) if both else (leaf.axis,),
            )
            sizes |= dict.fromkeys(along, m)
        case PerOutput():
            name, inner = "outputs", set(sizes) - set(leaf.rows)
            sizes |= {axis: leaf.shape[axis] for axis in inner}
        case Channel():
            name = "channels"
        case _:
            name = "blocks"
    return {
        axis: _Unit(name, size, math.lcm(size, 8) if axis == leaf.axis else size)
        for axis, size in sizes.items()
        if size > 1 or axis == leaf.axis
    }


def _uncut(leaf: LeafPlan, sharding: NamedSharding) -> PartitionSpec:
    """The same axes of the mesh, each moved to where there is room, or left out."""
    shape, mesh, units = leaf.shape, sharding.mesh.shape, _units(leaf)
    assert shape is not None
    taken: list[tuple[str, ...]] = [()] * len(shape)

    def fits(axis: int, names: tuple[str, ...]) -> bool:
        shards = math.prod(mesh[name] for name in names)
        unit = units[axis].both if axis in units else 1
        return shards == 1 or shape[axis] % (shards * unit) == 0

    def place(name: str, axes: Iterable[int]) -> bool:
        axis = next((i for i in axes if fits(i, (*taken[i], name))), None)
        if axis is not None:
            taken[axis] = (*taken[axis], name)
        return axis is not None

    homeless = [
        name
        for axis in range(len(shape))
        for name in names_along(sharding, axis)
        if not place(name, [axis])
    ]
    by_room = sorted(range(len(shape)), key=lambda i: (i in units, -shape[i]))
    for name in homeless:
        place(name, by_room)
    return PartitionSpec(
        *(names[0] if len(names) == 1 else names or None for names in taken)
    )


def _cells(leaf: LeafSharding) -> tuple[str, ...]:
    return (
        shape_text(leaf.shape),
        _spec_text(leaf.spec),
        leaf.cut or "-",
        _spec_text(leaf.instead),
    )


def _spec_text(spec: PartitionSpec | None) -> str:
    return "-" if spec is None else f"P({', '.join(map(repr, spec))})"
