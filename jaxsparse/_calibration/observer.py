"""Runs a program and accumulates the inputs that its products multiply leaves by."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Array

from jaxsparse._calibration.accumulator import Accumulator, accumulate
from jaxsparse._calibration.channel_index import channel_index
from jaxsparse._calibration.leaf_factors import add_factors
from jaxsparse._calibration.matrices import LayerMatrices
from jaxsparse._plans import LeafPlan
from jaxsparse._trace import (
    AxisPiece,
    Contraction,
    EquationRule,
    Factored,
    Path,
    Program,
    Site,
    Use,
    ViewAxis,
    product_inputs,
    run_with_factors,
    without_factors,
)


def matrices_of(
    program: Program, leaves: Iterable[LeafPlan]
) -> dict[str, LayerMatrices]:
    """Returns the problems, inputs and outputs of each leaf, read from its products.

    Raises:
      ValueError: the inputs of a leaf cannot be read, or are not along the axis that
        the plan groups.
    """
    products: dict[str, list[tuple[Path, Contraction]]] = {}
    for path, contractions in program.record.contractions.items():
        for contraction in contractions:
            products.setdefault(contraction.view.leaf, []).append((path, contraction))
    uses, matrices = program.uses, {}
    for leaf in leaves:
        try:
            _check_uses(uses[leaf.path])
            matrices[leaf.path] = _common_matrices(leaf, products.get(leaf.path, []))
        except ValueError as error:
            raise ValueError(
                f"the inputs of leaf {leaf.path!r} of shape {leaf.shape} can't be "
                f"read: {error}. Keep it dense by a rule, or plan with the same fn"
            ) from None
    return matrices


def observer_rule(
    contractions: Mapping[Path, Sequence[Contraction]],
    matrices: Mapping[str, LayerMatrices],
    weights: Array | None,
    batch: Array,
) -> EquationRule:
    """Returns a rule that runs every equation unchanged and accumulates inputs.

    Its state is a dict with an `Accumulator` for each leaf of `matrices`.

    Args:
      contractions: the products with leaves.
      matrices: the problems, inputs and outputs of the leaves to observe. Those that
        are scaled are `Factored` among the inputs of the program.
      weights: bool or real token weights, or None.
      batch: the number of the batch.
    """

    def observe(
        site: Site, inputs: list[Any], accumulators: dict[str, Accumulator]
    ) -> tuple[Sequence[Any] | None, dict[str, Accumulator]]:
        for contraction in contractions.get(site.path, ()):
            path = contraction.view.leaf
            if path in matrices:
                accumulator = _accumulate_product(
                    site,
                    contraction,
                    inputs,
                    matrices[path],
                    accumulators[path],
                    weights,
                    batch,
                )
                accumulators = {**accumulators, path: accumulator}
        if any(isinstance(x, Factored) for x in inputs):
            return run_with_factors(site, inputs, observe, accumulators)
        return None, accumulators

    return observe


def _accumulate_product(
    site: Site,
    contraction: Contraction,
    operands: list[Any],
    matrices: LayerMatrices,
    accumulator: Accumulator,
    weights: Array | None,
    batch: Array,
) -> Accumulator:
    """Adds the inputs of one product; its errors name the leaf."""
    view = contraction.view
    try:
        values = [without_factors(x) for x in operands]
        inputs = product_inputs(site.eqn, contraction, values)
        index = channel_index(
            inputs.batch, inputs.inputs, view.indexed, site.steps, matrices
        )
        accumulator = accumulate(accumulator, inputs, index, weights, batch)
        return _add_factors(site, contraction, operands, accumulator)
    except ValueError as error:
        raise ValueError(
            f"can't read the inputs of leaf {view.leaf!r} of shape {matrices.shape}: "
            f"{error}"
        ) from None


def _add_factors(
    site: Site, contraction: Contraction, operands: list[Any], accumulator: Accumulator
) -> Accumulator:
    """Adds the factors of a leaf in one product.

    Raises:
      ValueError: the leaf is scaled, and its factors were not followed.
    """
    operand, path = operands[contraction.operand], contraction.view.leaf
    followed = isinstance(operand, Factored) and path in operand.factors
    if accumulator.factors is None:
        if contraction.view.scaled:
            raise ValueError("it is scaled in some batches only")
        return accumulator
    if not followed:
        raise ValueError(
            "it is scaled, and carried by a loop or returned by a branch, where its "
            "factors are not followed"
        )
    factor = operand.factors[path]
    factors = add_factors(accumulator.factors, factor, contraction, site.steps)
    return accumulator._replace(factors=factors)


def _check_uses(uses: Sequence[Use]) -> None:
    """Raises if a leaf is used other than in products that can be followed."""
    for use in uses:
        if use.kind in ("gather", "lost"):
            raise ValueError(f"{use.reason or use.primitive} at {use.source}")
        if use.kind == "elementwise" and not use.reason:
            raise ValueError(
                f"{use.primitive} at {use.source} combines it with a value that "
                "depends on the inputs, and the result is not followed"
            )


def _common_matrices(
    leaf: LeafPlan, products: Sequence[tuple[Path, Contraction]]
) -> LayerMatrices:
    """Returns the problems, inputs and outputs of a leaf, the same in all products."""
    if not products:
        raise ValueError("fn does not multiply inputs by it")
    choices = {_matrices(leaf, path, product) for path, product in products}
    if len(choices) > 1:
        raise ValueError("different products use its axes differently")
    (matrices,) = choices
    scaled = any(product.view.scaled for _, product in products)
    return replace(matrices, scaled=scaled)


def _matrices(leaf: LeafPlan, path: Path, contraction: Contraction) -> LayerMatrices:
    """Returns the problems, inputs and outputs of a leaf in one product.

    Raises:
      ValueError: the inputs may not all be meant for the leaf.
    """
    _, side, view, shape = contraction
    assert leaf.shape is not None
    assert leaf.axis is not None
    _check_path(path)
    _check_view(contraction)
    summed = [*side.contracted, *side.spatial]
    others = [i for i in range(len(shape)) if i not in (*summed, *side.batch)]
    if side.groups > 1:
        (output,) = (view.axes[i] for i in others)
        whole = [ViewAxis((AxisPiece(i, size),)) for i, size in enumerate(leaf.shape)]
        if output not in whole:
            raise ValueError("its grouped convolution uses only some of its outputs")

    def leaf_axes(operand_axes: Sequence[int]) -> set[int]:
        return {axis for i in operand_axes for axis in view.axes[i].parameter_axes}

    inputs, outputs = leaf_axes(summed), leaf_axes(others)
    if split := inputs & outputs:
        raise ValueError(f"its axis {min(split)} is split into inputs and outputs")
    batch = (leaf_axes(side.batch) | view.batch) - inputs - outputs
    if leaf.axis not in inputs:
        contracted = " and ".join(map(str, sorted(inputs)))
        raise ValueError(
            f"its groups lie along axis {leaf.axis}, but a product contracts "
            f"{contracted}"
        )
    return LayerMatrices(
        leaf.shape,
        inputs=(*sorted(inputs - {leaf.axis}), leaf.axis),
        batch=tuple(sorted(axis for axis in batch if leaf.shape[axis] > 1)),
        groups=side.groups,
    )


def _check_path(path: Path) -> None:
    """Raises if what is accumulated at a product is lost or of one shard only."""
    if any(step.primitive == "shard_map" for step in path):
        raise ValueError(
            "it is multiplied inside shard_map; collect from the function without it"
        )
    if any(step.primitive == "while" and step.part for step in path):
        raise ValueError(
            "it is multiplied in the condition of a loop, or in a batched loop"
        )


def _check_view(contraction: Contraction) -> None:
    """Raises if the inputs of an operand may not all be meant for its leaf."""
    _, side, view, shape = contraction
    if view.unclear:
        raise ValueError(view.unclear)
    if view.bent:
        raise ValueError(
            f"it passes through {view.bent}, which does more than multiply it by a "
            "factor"
        )
    for i in (*side.batch, *side.contracted, *side.spatial):
        view_axis = view.axes[i]
        if view_axis.mixed_by and view_axis.parameter_axes:
            raise ValueError(f"its axes are mixed by {view_axis.mixed_by}")
        # Inputs of a piece are recognised by its offset; problems and copies are not.
        is_piece = view_axis.offset or view_axis.covered != shape[i]
        if is_piece and (i in side.batch or not view_axis.parameter_axes):
            raise ValueError("it is stacked with others")
    for view_axis, scan in view.indexed:
        if view_axis.mixed_by or (scan is None and view_axis.covered > 1):
            after = f" after {view_axis.mixed_by}" if view_axis.mixed_by else ""
            raise ValueError(f"the index that is taken of it is unknown{after}")
