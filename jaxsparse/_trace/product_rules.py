"""What each product does with the axes of the parameters that it contracts."""

from collections.abc import Callable, Sequence
from math import gcd

from jax.extend.core import JaxprEqn

from jaxsparse._trace.jaxpr import step_into, var_shape
from jaxsparse._trace.lookups import is_lookup
from jaxsparse._trace.record import (
    NOT_AN_OPERAND,
    AbstractValue,
    Contraction,
    OperandAxes,
    Record,
    Use,
    combine,
    source_line,
)
from jaxsparse._trace.selected import selection_of
from jaxsparse._trace.view import View
from jaxsparse._trace.view_axis import ViewAxis


def _dot_axes(eqn: JaxprEqn) -> list[OperandAxes | None]:
    contracted, batch = eqn.params["dimension_numbers"]
    return [OperandAxes(contracted[i], batch[i]) for i in (0, 1)]


def _ragged_axes(eqn: JaxprEqn) -> list[OperandAxes | None]:
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    contracted, batch = numbers.dot_dimension_numbers
    return [
        OperandAxes(contracted[0], batch[0]),
        OperandAxes(contracted[1], (*batch[1], *numbers.rhs_group_dimensions)),
    ]


def _conv_axes(eqn: JaxprEqn) -> list[OperandAxes | None]:
    _, inputs, *spatial = eqn.params["dimension_numbers"].rhs_spec
    groups = eqn.params["feature_group_count"]
    return [None, OperandAxes((inputs,), (), tuple(spatial), groups)]


#: `equation -> axes of both operands`; None for an operand that is not a weight.
_OPERAND_AXES: dict[str, Callable[[JaxprEqn], list[OperandAxes | None]]] = {
    "conv_general_dilated": _conv_axes,
    "dot_general": _dot_axes,
    "ragged_dot": _ragged_axes,
    "ragged_dot_general": _ragged_axes,
}


def record_product(
    eqn: JaxprEqn, inputs: list[AbstractValue], record: Record
) -> AbstractValue:
    """Records how a product contracts parameters; its result carries no views."""
    operands = inputs[:2]
    result = combine(inputs)
    path = step_into(record.path, eqn)
    axes_of = _OPERAND_AXES[eqn.primitive.name](eqn)
    selection = selection_of(operands, axes_of)
    if selection is not None:
        record.selections[path] = selection
    if not any(value.views for value in operands):
        return result
    if _record_lookup(eqn, operands, record):
        return result
    node = frozenset(view.leaf for value in operands for view in value.views)
    for i, axes in enumerate(axes_of):
        # A product of parameters alone does not multiply either of them by an input.
        other = operands[1 - i]
        has_input = other.varies or not other.params
        for view in dict.fromkeys(operands[i].views):  # `w + w` has two equal views
            if view.varies and not has_input:  # it is an input of the other parameter
                use = Use(eqn.primitive.name, "elementwise", source=source_line(eqn))
            else:
                use = _use(eqn, view, axes, i, node)
            record.uses.append((view.leaf, use))
            if has_input and axes and use.kind == "contraction":
                shape = var_shape(eqn.invars[i])
                contractions = record.contractions.setdefault(path, [])
                contractions.append(Contraction(i, axes, view, shape))
    # Constants count as inputs: the result is a parameter only if both operands are.
    params_only = all(value.params and not value.varies for value in operands)
    return AbstractValue(inputs=not params_only, params=True)


def _record_lookup(
    eqn: JaxprEqn, operands: Sequence[AbstractValue], record: Record
) -> bool:
    """Records a product with a one-hot operand; returns whether it is one."""
    for i, axes in enumerate(_OPERAND_AXES[eqn.primitive.name](eqn)):
        if axes is None or not operands[1 - i].views:
            continue
        shape = var_shape(eqn.invars[i])
        if is_lookup(operands[i].one_hot, axes.contracted, shape):
            for leaf in dict.fromkeys(view.leaf for view in operands[1 - i].views):
                use = Use(eqn.primitive.name, "gather", source=source_line(eqn))
                record.uses.append((leaf, use))
            return True
    return False


def _use(
    eqn: JaxprEqn,
    view: View,
    axes: OperandAxes | None,
    operand: int,
    node: frozenset[str],
) -> Use:
    """The use of one parameter as the first (0) or the second (1) operand."""
    name, source = eqn.primitive.name, source_line(eqn)
    if view.lost or axes is None:
        return Use(name, "lost", reason=view.lost or name, source=source)
    contracted = _parameter_axes(view, axes.contracted)
    batch = (_parameter_axes(view, axes.batch) | view.batch) - contracted
    inner = {*axes.contracted, *axes.batch, *axes.spatial}
    outer = [i for i in range(len(view.axes)) if i not in inner]
    group, alignment, reason = _group(view, axes, var_shape(eqn.invars[operand]))
    return Use(
        name,
        "contraction",
        contracted=tuple(sorted(contracted)),
        batch=tuple(sorted(batch)),
        output=tuple(sorted(_parameter_axes(view, outer) - contracted - batch)),
        group=group,
        alignment=alignment,
        groups=axes.groups,
        other=var_shape(eqn.invars[1 - operand]),
        merged=view.merged,
        reason=reason,
        node=node,
        source=source,
    )


def _parameter_axes(view: View, axes: Sequence[int]) -> set[int]:
    return {axis for i in axes for axis in view.axes[i].parameter_axes}


def _group(
    view: View, operand: OperandAxes, shape: Sequence[int]
) -> tuple[int | None, int, str]:
    """Returns the group axis of a product, its alignment, and why there is none.

    Of axes contracted separately it is the last one of the leaf; of axes merged into
    one it is the innermost, whose elements must be consecutive.
    """
    axes = [view.axes[i] for i in operand.contracted]
    sizes = [shape[i] for i in operand.contracted]
    if operand.spatial and sizes == [1]:
        depthwise = operand.groups > 1
        return None, 0, "depthwise convolution" if depthwise else "one input channel"
    inner = {i: axis.pieces[-1] for i, axis in enumerate(axes) if axis.parameter_axes}
    if not inner:
        return None, 0, NOT_AN_OPERAND
    for i in inner:
        if axes[i].mixed_by:
            return None, 0, f"mixed axes ({axes[i].mixed_by})"
    last = max(piece.axis for piece in inner.values())
    for i, piece in inner.items():
        if piece.axis == last and piece.stride == 1:
            return last, _alignment(axes, sizes, i), ""
    if any(piece.stride < 0 for piece in inner.values()):
        return None, 0, "mixed axes (rev)"
    return None, 0, "mixed axes"


def _alignment(axes: Sequence[ViewAxis], sizes: Sequence[int], i: int) -> int:
    """What `m` must divide for groups along the innermost piece of `axes[i]`.

    Groups must start at the same elements in the product as in the leaf, and must not
    extend from one run of consecutive elements into the next.
    """
    axis, inner = axes[i], axes[i].pieces[-1]
    offset = inner.start - axis.offset
    others = [j for j in range(len(axes)) if j != i and sizes[j] > 1]
    if len(axis.pieces) > 1:
        return gcd(offset, inner.block, inner.size, sizes[i] if others else 0)
    for j in others:
        outer = axes[j].pieces[-1] if len(axes[j].pieces) == 1 else None
        if outer and (outer.axis, outer.stride) == (inner.axis, sizes[i]):
            # The product sums over the blocks too: together they are the whole axis.
            offset += outer.start - axes[j].offset * sizes[i]
            return gcd(offset, sizes[j] * sizes[i] if len(others) > 1 else 0)
    return gcd(offset, inner.block, sizes[i] if others else 0)


#: The primitives that contract.
PRODUCTS = frozenset(_OPERAND_AXES)
