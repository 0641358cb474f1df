"""Runs a program and adds up what its products multiply the leaves by."""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxtyping import Array

from jaxsparse._columns import Columns
from jaxsparse._evaluate import Rule, Site
from jaxsparse._interpreter import Path
from jaxsparse._leaf_plan import LeafPlan
from jaxsparse._places import find_places
from jaxsparse._program import Program
from jaxsparse._rows import rows_of
from jaxsparse._tally import Tally, add_rows
from jaxsparse._values import Contraction


def columns_of(program: Program, leaves: Iterable[LeafPlan]) -> dict[str, Columns]:
    """Which axes of each leaf are inputs, read from the program that contracts it.

    Raises:
      ValueError: the inputs of a leaf can't be told, or are not what the plan groups.
    """
    found: dict[str, list[tuple[Path, Contraction]]] = {}
    for path, contractions in program.record.contractions.items():
        for contraction in contractions:
            found.setdefault(contraction.view.leaf, []).append((path, contraction))
    return {
        leaf.path: _columns(leaf, program, found.get(leaf.path, [])) for leaf in leaves
    }


def tally_rule(
    program: Program,
    columns: Mapping[str, Columns],
    weights: Array | None,
    batch: Array,
) -> Rule:
    """A rule that runs everything as it stands and keeps a tally of each leaf.

    The state is a dict of a `Tally` for each leaf of `columns`.
    """
    contractions = program.record.contractions

    def add(site: Site, inputs: list[Any], tallies: dict[str, Tally]):
        for contraction in contractions.get(site.path, ()):
            leaf = contraction.view.leaf
            if leaf in columns:
                tally = _added(
                    site,
                    contraction,
                    inputs,
                    columns[leaf],
                    tallies[leaf],
                    weights,
                    batch,
                )
                tallies = {**tallies, leaf: tally}
        return None, tallies

    return add


def _added(site, contraction, inputs, columns, tally, weights, batch) -> Tally:
    try:
        rows = rows_of(site.eqn, contraction, inputs)
        indexed = contraction.view.indexed
        places = find_places(rows.batch, rows.inputs, indexed, site.steps, columns)
        return add_rows(tally, rows, places, weights, batch)
    except ValueError as error:
        raise ValueError(
            f"the inputs of leaf {contraction.view.leaf!r} of shape {columns.shape}: "
            f"{error}"
        ) from None


def _columns(
    leaf: LeafPlan, program: Program, found: list[tuple[Path, Contraction]]
) -> Columns:
    def refuse(why: str) -> ValueError:
        return ValueError(
            f"the inputs of leaf {leaf.path!r} of shape {leaf.shape} can't be read: "
            f"{why}. Keep it dense by a rule, or plan with the same fn"
        )

    assert leaf.shape is not None
    for use in program.uses[leaf.path]:
        if use.kind in ("gather", "lost"):
            raise refuse(f"{use.reason or use.primitive} at {use.source}")
    if not found:
        raise refuse("fn does not multiply by it")
    read = {_axes(leaf, path, contraction, refuse) for path, contraction in found}
    if len(read) > 1:
        raise refuse("its axes play different parts in different products")
    (columns,) = read
    return columns


def _axes(leaf: LeafPlan, path: Path, contraction: Contraction, refuse) -> Columns:
    view, side = contraction.view, contraction.side
    assert leaf.shape is not None
    if any(step.primitive == "shard_map" for step in path):
        raise refuse("it is inside shard_map; collect from the function without")
    if any(step.primitive == "while" and step.part for step in path):
        raise refuse("it is inside the condition of a loop")
    summed = [view.dims[i] for i in (*side.contracted, *side.spatial)]
    apart = [view.dims[i] for i in side.batch] + [dim for dim, _ in view.indexed]
    for dim in summed + apart:
        if dim.opaque and dim.axes:
            raise refuse(f"axes are mixed by {dim.opaque}")
    inputs = {axis for dim in summed for axis in dim.axes}
    batch = {axis for dim in apart for axis in dim.axes} - inputs
    if leaf.axis not in inputs:
        summed_over = " and ".join(map(str, sorted(inputs)))
        raise refuse(
            f"its groups lie along axis {leaf.axis}, fn sums over {summed_over}"
        )
    return Columns(
        leaf.shape,
        inputs=(*sorted(inputs - {leaf.axis}), leaf.axis),
        batch=tuple(sorted(axis for axis in batch if leaf.shape[axis] > 1)),
        groups=side.groups,
    )
