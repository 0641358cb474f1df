"""Reports of sharding: which searches need communication, and how to avoid it."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from jax.sharding import NamedSharding, PartitionSpec

from jaxsparse._patterns import NM, Channel, PerOutput
from jaxsparse._plans import LeafPlan, PlanLike, plan_for
from jaxsparse._sharding import names_along, shards_along
from jaxsparse._trees import PyTree, Tabular, flatten, fold, shape_text


@dataclass(frozen=True)
class LeafSharding:
    """How one pruned leaf is sharded.

    Attributes:
      path: the canonical path.
      shape: the leaf's shape.
      spec: its partition spec; None if it has no `NamedSharding`.
      cut: the groups, outputs, blocks, channels or bytes that shards cut, so that the
        search needs communication; empty if none are.
      instead: a partition spec over the same mesh axes that cuts nothing; None if
        nothing is cut. It omits mesh axes that fit along no axis of the leaf.
    """

    path: str
    shape: tuple[int, ...]
    spec: PartitionSpec | None
    cut: str
    instead: PartitionSpec | None


@dataclass(frozen=True)
class ShardingReport(Tabular):
    """A report on the sharding of every pruned leaf, which prints as a table.

    Attributes:
      leaves: a `LeafSharding` for each leaf.
    """

    leaves: tuple[LeafSharding, ...]

    def __iter__(self) -> Iterator[LeafSharding]:
        return iter(self.leaves)

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        header = ("leaf", "shape", "sharding", "what is cut", "instead")
        return header, fold((leaf.path, _cells(leaf)) for leaf in self.leaves)


def sharding_report(params: PyTree, plan: PlanLike = "2:4") -> ShardingReport:
    """Reports which leaves need communication to search their masks, and a remedy.

    A mask is searched without communication if every shard holds whole groups, and
    whole bytes of the packed mask, of eight weights along the group axis. If shards cut
    them the result is the same, but the search requires an all-gather along that axis,
    and the packed mask is not sharded along it. Optimizer steps need no communication.
    Outputs, blocks and channels that are cut over automatic mesh axes communicate only
    counts or sums.

    Args:
      params: a tree of arrays, or of `jax.ShapeDtypeStruct` with shardings.
      plan: a plan, rules or a pattern.

    Returns:
      A `ShardingReport` on the pruned leaves.

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
    leaves = flatten(params).by_path
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
        if shards > 1 and size % (shards * unit.packed_size):
            cuts_units = size % (shards * unit.size) != 0
            what = f"{unit.name} of {unit.size}" if cuts_units else "bytes of 8"
            cuts.append(
                f"{shards} shards of {size // shards} along axis {axis} cut {what}"
            )
    instead = _uncut_spec(leaf, sharding) if cuts else None
    return LeafSharding(
        leaf.path, leaf.shape, sharding.spec, " and ".join(cuts), instead
    )


class _Unit(NamedTuple):
    """What each shard must hold whole along an axis.

    Attributes:
      name: the plural name of the units.
      size: the number of weights of a unit along the axis.
      packed_size: the least number of weights of whole units that are also whole bytes
        of a packed mask, if that is packed along the axis.
    """

    name: str
    size: int
    packed_size: int


def _units(leaf: LeafPlan) -> dict[int, _Unit]:
    """Returns the units along each axis that shards must not cut."""
    assert leaf.shape is not None
    assert leaf.axis is not None
    sizes = dict(enumerate(leaf.tile))
    match leaf.pattern:
        case NM(m=m):
            name = "groups"
            sizes[leaf.axis] = m
            if leaf.pattern.transposable:
                sizes[leaf.output[-1]] = m
        case PerOutput():
            name = "outputs"
            for axis in set(sizes) - set(leaf.rows):
                sizes[axis] = leaf.shape[axis]
        case Channel():
            name = "channels"
        case _:
            name = "blocks"
    return {
        axis: _Unit(name, size, math.lcm(size, 8) if axis == leaf.axis else size)
        for axis, size in sizes.items()
        if size > 1 or axis == leaf.axis
    }


def _uncut_spec(leaf: LeafPlan, sharding: NamedSharding) -> PartitionSpec:
    """Returns a spec with each mesh axis moved to an axis it fits along, or omitted."""
    shape, mesh, units = leaf.shape, sharding.mesh.shape, _units(leaf)
    assert shape is not None
    assigned: list[tuple[str, ...]] = [()] * len(shape)

    def fits(axis: int, names: tuple[str, ...]) -> bool:
        shards = math.prod(mesh[name] for name in names)
        unit = units[axis].packed_size if axis in units else 1
        return shards == 1 or shape[axis] % (shards * unit) == 0

    def assign(name: str, axes: Iterable[int]) -> bool:
        axis = next((i for i in axes if fits(i, (*assigned[i], name))), None)
        if axis is not None:
            assigned[axis] = (*assigned[axis], name)
        return axis is not None

    unassigned = [
        name
        for axis in range(len(shape))
        for name in names_along(sharding, axis)
        if not assign(name, [axis])
    ]
    by_preference = sorted(range(len(shape)), key=lambda i: (i in units, -shape[i]))
    for name in unassigned:
        assign(name, by_preference)
    return PartitionSpec(
        *(names[0] if len(names) == 1 else names or None for names in assigned)
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
