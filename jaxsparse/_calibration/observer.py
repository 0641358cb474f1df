"""Runs a program and adds up what its products multiply the leaves by."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxtyping import Array

from jaxsparse._calibration.accumulator import Accumulator, accumulate
from jaxsparse._calibration.channel_index import channel_index
from jaxsparse._calibration.matrices import LayerMatrices
from jaxsparse._plans import LeafPlan
from jaxsparse._trace import (
    AxisPiece,
    Contraction,
    EquationRule,
    Path,
    Program,
    Site,
    Use,
    ViewAxis,
    product_inputs,
)


def matrices_of(
    program: Program, leaves: Iterable[LeafPlan]
) -> dict[str, LayerMatrices]:
    """Which axes of each leaf are inputs, read from the program that contracts it.

    Raises:
      ValueError: the inputs of a leaf can't be told, or are not what the plan groups.
    """
    found: dict[str, list[tuple[Path, Contraction]]] = {}
    for path, contractions in program.record.contractions.items():
        for contraction in contractions:
            found.setdefault(contraction.view.leaf, []).append((path, contraction))
    uses, columns = program.uses, {}
    for leaf in leaves:
        try:
            mine = found.get(leaf.path, [])
            columns[leaf.path] = _columns(leaf, uses[leaf.path], mine)
        except ValueError as error:
            raise ValueError(
                f"the inputs of leaf {leaf.path!r} of shape {leaf.shape} can't be "
                f"read: {error}. Keep it dense by a rule, or plan with the same fn"
            ) from None
    return columns


def observer_rule(
    program: Program,
    columns: Mapping[str, LayerMatrices],
    weights: Array | None,
    batch: Array,
) -> EquationRule:
    """A rule that runs everything as it stands and keeps a tally of each leaf.

    The state is a dict of a `Accumulator` for each leaf of `columns`.
    """
    contractions = program.record.contractions

    def add(site: Site, inputs: list[Any], tallies: dict[str, Accumulator]):
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


def _added(site, contraction, inputs, columns, tally, weights, batch) -> Accumulator:
    try:
        rows = product_inputs(site.eqn, contraction, inputs)
        indexed = contraction.view.indexed
        places = channel_index(rows.batch, rows.inputs, indexed, site.steps, columns)
        return accumulate(tally, rows, places, weights, batch)
    except ValueError as error:
        raise ValueError(
            f"the inputs of leaf {contraction.view.leaf!r} of shape {columns.shape}: "
            f"{error}"
        ) from None


def _columns(
    leaf: LeafPlan, uses: Sequence[Use], found: Sequence[tuple[Path, Contraction]]
) -> LayerMatrices:
    """Which axes of a leaf are inputs, if that is the same in all products."""
    for use in uses:
        if use.kind in ("gather", "lost"):
            raise ValueError(f"{use.reason or use.primitive} at {use.source}")
        if use.kind == "elementwise" and not use.reason:
            raise ValueError(
                f"it meets what depends on the inputs in {use.primitive} at "
                f"{use.source}, and what comes of that is not followed"
            )
    if not found:
        raise ValueError("fn does not multiply inputs by it")
    read = {_axes(leaf, path, contraction) for path, contraction in found}
    if len(read) > 1:
        raise ValueError("its axes play different parts in different products")
    (columns,) = read
    return columns


def _axes(leaf: LeafPlan, path: Path, contraction: Contraction) -> LayerMatrices:
    """Which axes of a leaf are inputs of one product.

    Raises:
      ValueError: inputs might be counted that are not meant for the leaf.
    """
    _, side, view, shape = contraction
    assert leaf.shape is not None
    assert leaf.axis is not None
    if any(step.primitive == "shard_map" for step in path):
        raise ValueError("it is inside shard_map; collect from the function without")
    if any(step.primitive == "while" and step.part for step in path):
        raise ValueError("it is in the condition of a loop, or in a batch of loops")
    if view.unclear:
        raise ValueError(view.unclear)
    summed = [*side.contracted, *side.spatial]
    others = [i for i in range(len(shape)) if i not in (*summed, *side.batch)]
    for i in (*side.batch, *summed):
        dim = view.axes[i]
        if dim.mixed_by and dim.parameter_axes:
            raise ValueError(f"its axes are mixed by {dim.mixed_by}")
        # Of pieces only those of the inputs are told apart, by where they lie.
        partly = dim.offset or dim.covered != shape[i]
        if partly and (i in side.batch or not dim.parameter_axes):
            raise ValueError("it is stacked with others")
    for dim, by in view.indexed:
        if dim.mixed_by or (by is None and dim.covered > 1):
            raise ValueError(
                f"which of its parts is taken is not known: {dim.mixed_by}"
            )
    if side.groups > 1:
        (output,) = (view.axes[i] for i in others)
        if output not in [
            ViewAxis((AxisPiece(i, n),)) for i, n in enumerate(leaf.shape)
        ]:
            raise ValueError("it has not all outputs of its grouped convolution")
    axes = lambda places: {axis for i in places for axis in view.axes[i].parameter_axes}
    inputs = axes(summed)
    batch = (axes(side.batch) | view.batch) - inputs - axes(others)
    if leaf.axis not in inputs:
        known = " and ".join(map(str, sorted(inputs)))
        raise ValueError(f"its groups lie along axis {leaf.axis}, fn sums over {known}")
    return LayerMatrices(
        leaf.shape,
        inputs=(*sorted(inputs - {leaf.axis}), leaf.axis),
        batch=tuple(sorted(axis for axis in batch if leaf.shape[axis] > 1)),
        groups=side.groups,
    )
