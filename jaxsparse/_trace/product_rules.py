"""Products, where parameters are contracted."""

from collections.abc import Callable, Sequence
from functools import partial
from math import gcd
from typing import Any

from jaxsparse._trace.jaxpr import step_into
from jaxsparse._trace.record import (
    AbstractValue,
    Contraction,
    OperandAxes,
    Record,
    Use,
    combine,
    source_line,
)
from jaxsparse._trace.view import View, ViewAxis


def _dot_sides(eqn) -> list[OperandAxes | None]:
    contracted, batch = eqn.params["dimension_numbers"]
    return [OperandAxes(contracted[i], batch[i]) for i in (0, 1)]


def _ragged_sides(eqn) -> list[OperandAxes | None]:
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    contracted, batch = numbers.dot_dimension_numbers
    return [
        OperandAxes(contracted[0], batch[0]),
        OperandAxes(contracted[1], (*batch[1], *numbers.rhs_group_dimensions)),
    ]


def _conv_sides(eqn) -> list[OperandAxes | None]:
    _, inputs, *spatial = eqn.params["dimension_numbers"].rhs_spec
    groups = eqn.params["feature_group_count"]
    return [None, OperandAxes((inputs,), (), tuple(spatial), groups)]


_SIDES: dict[str, Callable[[Any], list[OperandAxes | None]]] = {
    "conv_general_dilated": _conv_sides,
    "dot_general": _dot_sides,
    "ragged_dot": _ragged_sides,
    "ragged_dot_general": _ragged_sides,
}


def record_product(eqn, inputs: list[AbstractValue], record: Record) -> AbstractValue:
    """Writes down what a product does with parameters; its result shows none."""
    operands = inputs[:2]
    result = combine(inputs)
    if not any(value.views for value in operands):
        return result
    node = frozenset(view.leaf for value in operands for view in value.views)
    others = result.frontier - {node}
    record.after.update(others)
    if others:
        record.before.add(node)
    for i, side in enumerate(_SIDES[eqn.primitive.name](eqn)):
        # By other parameters alone a parameter is not multiplied by any input.
        read = operands[1 - i].inputs or not operands[1 - i].params
        for view in dict.fromkeys(operands[i].views):  # `w + w` shows it twice
            use = _contraction(eqn, view, side, i, node)
            record.uses.append((view.leaf, use))
            if read and side and use.kind == "contraction":
                here = step_into(record.path, eqn)
                found = record.contractions.setdefault(here, [])
                shape = tuple(eqn.invars[i].aval.shape)
                found.append(Contraction(i, side, view, shape))
    # A constant is as good as an input: only parameters alone make a parameter.
    alone = all(value.params and not value.inputs for value in operands)
    return AbstractValue(inputs=not alone, params=True, frontier=frozenset({node}))


def _contraction(
    eqn,
    view: View,
    side: OperandAxes | None,
    operand: int,
    node: frozenset[str],
) -> Use:
    """The use of one parameter as the first (0) or the second (1) operand."""
    lost = partial(Use, eqn.primitive.name, "lost", source=source_line(eqn))
    if view.lost:
        return lost(reason=view.lost)
    if side is None:
        return lost(reason=eqn.primitive.name)
    shape = eqn.invars[operand].aval.shape
    of = lambda places: {axis for i in places for axis in view.dims[i].axes}
    contracted = of(side.contracted)
    batch = (of(side.batch) | view.batch) - contracted
    rest = set(range(len(view.dims))) - {
        *side.contracted,
        *side.batch,
        *side.spatial,
    }
    sizes = [shape[i] for i in side.contracted]
    group, alignment, reason = _group([view.dims[i] for i in side.contracted], sizes)
    if side.spatial and sizes == [1]:
        depthwise = side.groups > 1
        group, reason = None, "depthwise" if depthwise else "one input channel"
    return Use(
        eqn.primitive.name,
        "contraction",
        contracted=tuple(sorted(contracted)),
        batch=tuple(sorted(batch)),
        output=tuple(sorted(of(rest) - contracted - batch)),
        group=group,
        alignment=alignment,
        groups=side.groups,
        other=tuple(eqn.invars[1 - operand].aval.shape),
        merged=view.merged,
        reason=reason,
        node=node,
        source=source_line(eqn),
    )


def _group(
    dims: Sequence[ViewAxis], sizes: Sequence[int]
) -> tuple[int | None, int, str]:
    """The group axis of a product over these axes, its alignment, or why there is none.

    Of axes contracted separately the last one of the leaf; of axes merged into one the
    innermost, which has to be there in whole runs.
    """
    places = [i for i, dim in enumerate(dims) if dim.axes]
    if not places:
        return None, 0, "only elementwise"
    for i in places:
        if dims[i].opaque:
            return None, 0, f"mixed axes ({dims[i].opaque})"
    inner = {i: dims[i].factors[-1] for i in places}
    last = max(factor.axis for factor in inner.values())
    for i, factor in inner.items():
        if factor.axis == last and factor.stride == 1:
            return last, _alignment(dims, sizes, i), ""
    return None, 0, "mixed axes"


def _alignment(dims: Sequence[ViewAxis], sizes: Sequence[int], i: int) -> int:
    """What `m` has to divide for groups along the innermost piece of `dims[i]`.

    A group may neither begin elsewhere in the product than in the leaf, nor go on from
    one run of consecutive elements into the next.
    """
    dim, inner = dims[i], dims[i].factors[-1]
    offset = inner.start - dim.place
    others = [j for j in range(len(dims)) if j != i and sizes[j] > 1]
    if len(dim.factors) > 1:
        return gcd(offset, inner.unit, inner.size, sizes[i] if others else 0)
    for j in others:
        outer = dims[j].factors[-1] if len(dims[j].factors) == 1 else None
        if outer and (outer.axis, outer.stride) == (inner.axis, sizes[i]):
            # The blocks are summed over as well: together they are the axis again.
            offset += outer.start - dims[j].place * sizes[i]
            return gcd(offset, sizes[j] * sizes[i] if len(others) > 1 else 0)
    return gcd(offset, inner.unit, sizes[i] if others else 0)


#: The primitives that contract.
PRODUCTS = frozenset(_SIDES)
