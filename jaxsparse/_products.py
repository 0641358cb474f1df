"""Products, where parameters are contracted."""

from collections.abc import Callable, Sequence
from functools import partial
from math import gcd
from typing import Any, NamedTuple

from jaxsparse._values import Record, Use, Value, blend, source
from jaxsparse._views import Dim, View


class _Side(NamedTuple):
    """What a product does with the axes of one of its operands."""

    contracted: tuple[int, ...]
    batch: tuple[int, ...]
    spatial: tuple[int, ...] = ()


def _dot_sides(eqn) -> list[_Side | None]:
    contracted, batch = eqn.params["dimension_numbers"]
    return [_Side(contracted[i], batch[i]) for i in (0, 1)]


def _ragged_sides(eqn) -> list[_Side | None]:
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    contracted, batch = numbers.dot_dimension_numbers
    return [
        _Side(contracted[0], batch[0]),
        _Side(contracted[1], (*batch[1], *numbers.rhs_group_dimensions)),
    ]


def _conv_sides(eqn) -> list[_Side | None]:
    _, inputs, *spatial = eqn.params["dimension_numbers"].rhs_spec
    return [None, _Side((inputs,), (), tuple(spatial))]


_SIDES: dict[str, Callable[[Any], list[_Side | None]]] = {
    "conv_general_dilated": _conv_sides,
    "dot_general": _dot_sides,
    "ragged_dot": _ragged_sides,
    "ragged_dot_general": _ragged_sides,
}


def product(eqn, inputs: list[Value], record: Record) -> Value:
    """Writes down what a product does with parameters; its result shows none."""
    operands = inputs[:2]
    result = blend(inputs)
    if not any(value.views for value in operands):
        return result
    node = frozenset(view.leaf for value in operands for view in value.views)
    others = result.frontier - {node}
    record.after.update(others)
    if others:
        record.before.add(node)
    for i, side in enumerate(_SIDES[eqn.primitive.name](eqn)):
        other = tuple(eqn.invars[1 - i].aval.shape)
        for view in operands[i].views:
            use = _contraction(eqn, view, side, other, node)
            record.uses.append((view.leaf, use))
    # A constant is as good as an input: only parameters alone make a parameter.
    alone = all(value.params and not value.inputs for value in operands)
    return Value(inputs=not alone, params=True, frontier=frozenset({node}))


def _contraction(
    eqn,
    view: View,
    side: _Side | None,
    other: tuple[int, ...],
    node: frozenset[str],
) -> Use:
    """The use of one parameter by a product with an operand of shape `other`."""
    lost = partial(Use, eqn.primitive.name, "lost", source=source(eqn))
    if view.lost:
        return lost(reason=view.lost)
    if side is None:
        return lost(reason=eqn.primitive.name)
    of = lambda places: {axis for i in places for axis in view.dims[i].axes}
    contracted = of(side.contracted)
    batch = (of(side.batch) | view.batch) - contracted
    rest = set(range(len(view.dims))) - {
        *side.contracted,
        *side.batch,
        *side.spatial,
    }
    group, alignment, reason = _group([view.dims[i] for i in side.contracted])
    if side.spatial and eqn.invars[1].aval.shape[side.contracted[0]] == 1:
        group, reason = None, "depthwise, or one input channel"
    return Use(
        eqn.primitive.name,
        "contraction",
        contracted=tuple(sorted(contracted)),
        batch=tuple(sorted(batch)),
        output=tuple(sorted(of(rest) - contracted - batch)),
        group=group,
        alignment=alignment,
        groups=eqn.params.get("feature_group_count", 1),
        other=other,
        merged=view.merged,
        reason=reason,
        node=node,
        source=source(eqn),
    )


def _group(dims: Sequence[Dim]) -> tuple[int | None, int, str]:
    """The group axis of a product over these axes, its alignment, or why there is none.

    Of axes contracted separately the last one of the leaf; of axes merged into one the
    innermost, which has to be there in whole runs.
    """
    summed = [factor for dim in dims for factor in dim.factors]
    summed_axes = {factor.axis for factor in summed if factor.axis >= 0}
    found: dict[int, int] = {}
    for dim in dims:
        if dim.opaque and dim.axes:
            return None, 0, f"mixed axes ({dim.opaque})"
        if not dim.axes:
            continue
        inner = dim.factors[-1]
        if inner.axis < 0 or inner.stride != 1:
            continue
        # Blocks that are summed over as well make up the whole axis again.
        rejoined = any(f.axis == inner.axis and f.stride == inner.size for f in summed)
        alignment = inner.start - dim.place
        if not rejoined:
            alignment = gcd(alignment, inner.unit)
            if len(summed) > 1:  # the next run begins where this one ends
                alignment = gcd(alignment, inner.size)
        found[inner.axis] = alignment
    if not summed_axes:
        return None, 0, "only elementwise"
    last = max(dim.factors[-1].axis for dim in dims if dim.axes)
    return (last, found[last], "") if last in found else (None, 0, "mixed axes")


#: The primitives that contract.
PRODUCTS = frozenset(_SIDES)
