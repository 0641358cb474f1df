"""Weights that the inputs select, such as those of one expert for each token.

`weights[index]` depends on the inputs, so it is not pruned along any one axis. In a
product it still acts as a weight: what follows is another layer. Here the axes of these
weights are followed to the products that contract them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jax.extend.core import JaxprEqn

from jaxsparse._trace.features import move_features
from jaxsparse._trace.graph import Step, ValueType
from jaxsparse._trace.jaxpr import var_shape
from jaxsparse._trace.record import AbstractValue, OperandAxes, Selected, Selection
from jaxsparse._trace.view import View
from jaxsparse._trace.view_rules import KEEPS_ZEROS


#: Operations on one operand that move elements or keep zeros.
_FOLLOWED = KEEPS_ZEROS | frozenset(
    ["broadcast_in_dim", "reshape", "rev", "slice", "squeeze", "transpose"]
)


def selected_weights(
    eqn: JaxprEqn, inputs: Sequence[AbstractValue]
) -> tuple[Selected, ...]:
    """Returns the weights that an output which depends on the inputs shows."""
    name, first = eqn.primitive.name, inputs[0]
    rank = len(var_shape(eqn.outvars[0]))
    match name:
        case "gather":
            return _sliced(eqn, first, _gathered_axes(eqn))
        case "dynamic_slice":
            return _sliced(eqn, first, {i: i for i in range(rank)})
        case "mul":
            values = inputs
        case "div":
            values = inputs[:1]
        case "select_n":
            values = inputs[1:]
        case _:
            return _moved(eqn, first.selected) if name in _FOLLOWED else ()
    operands = [value for value in values if value.views or value.selected]
    weights = [
        Selected(view.leaf, frozenset(_parameter_axes(view)))
        for value in operands
        for view in value.views
        if _is_matrix(view)
    ]
    weights += [weight for value in operands for weight in value.selected]
    return tuple(dict.fromkeys(weights))


def is_scaled_by_inputs(eqn: JaxprEqn, inputs: Sequence[AbstractValue]) -> bool:
    """Returns whether a weight is multiplied by a smaller value that depends on inputs.

    The result is then followed as a weight: its zeros are those of the weight. A larger
    value is an activation, such as one that the gain of a norm multiplies.
    """
    name = eqn.primitive.name
    i = 0 if inputs[0].views else 1
    if name not in ("mul", "div") or (name == "div" and i):
        return False
    weight, factor = (var_shape(eqn.invars[k]) for k in (i, 1 - i))
    # A scalar is combined with an array of any rank; sizes may be symbols.
    if not (all(map(_is_matrix, inputs[i].views)) and _are_numbers(factor)):
        return False
    return not factor or any(n == 1 < k for n, k in zip(factor, weight, strict=True))


def selection_of(
    operands: Sequence[AbstractValue], axes: Sequence[OperandAxes | None]
) -> Selection | None:
    """Returns the operand of a product that shows weights which the inputs select.

    It does if the product contracts an axis of them and another one is left, and if the
    other operand is not itself a parameter.

    Args:
      operands: both operands.
      axes: what the product does with their axes.
    """
    for i, of_operand in reversed([*enumerate(axes)]):
        other = operands[1 - i]
        if of_operand is None or (other.params and not other.varies):
            continue
        inner = {*of_operand.contracted, *of_operand.batch, *of_operand.spatial}
        leaves = {
            weight.leaf
            for weight in operands[i].selected
            if weight.axes.intersection(of_operand.contracted) and weight.axes - inner
        }
        leaves.update(view.leaf for view in operands[i].views if view.varies)
        if leaves:
            return Selection(i, frozenset(leaves))
    return None


def _are_numbers(shape: Sequence[Any]) -> bool:
    return all(isinstance(size, int) for size in shape)


def _is_matrix(view: View) -> bool:
    """Returns whether a value shows two or more axes of a parameter, and no copies."""
    return not (view.lost or view.is_broadcast) and len(_parameter_axes(view)) > 1


def _parameter_axes(view: View) -> list[int]:
    """Returns the axes, larger than one, that show those of the parameter."""
    return [
        i
        for i, axis in enumerate(view.axes)
        if any(piece.axis >= 0 and piece.size > 1 for piece in axis.pieces)
    ]


def _sliced(
    eqn: JaxprEqn, value: AbstractValue, moved: Mapping[int, int]
) -> tuple[Selected, ...]:
    """Returns the weights that an index selects from a value.

    `moved` has the output's axis for each axis of the value that is left. An axis that
    is left whole is one of the selected weights.
    """
    shape, sizes = var_shape(eqn.invars[0]), eqn.params["slice_sizes"]
    whole = {i: axis for i, axis in moved.items() if sizes[i] == shape[i]}
    of_views = [(x.leaf, _parameter_axes(x)) for x in value.views if not x.lost]
    return tuple(
        Selected(leaf, frozenset(whole[i] for i in axes if i in whole))
        for leaf, axes in (*of_views, *value.selected)
    )


def _gathered_axes(eqn: JaxprEqn) -> dict[int, int]:
    numbers = eqn.params["dimension_numbers"]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    left = [i for i in range(len(var_shape(eqn.invars[0]))) if i not in gone]
    return dict(zip(left, map(int, numbers.offset_dims), strict=True))


def _moved(eqn: JaxprEqn, weights: Sequence[Selected]) -> tuple[Selected, ...]:
    """Returns the weights after an operation on one operand."""
    step = Step(eqn.primitive.name, (0,), (1,), eqn)
    shapes = var_shape(eqn.invars[0]), var_shape(eqn.outvars[0])
    values = [ValueType(shape, None) for shape in shapes]
    return tuple(
        Selected(leaf, axes)
        for leaf, before in weights
        if (axes := move_features(step, 0, before, values))
    )
