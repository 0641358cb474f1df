"""Which axes of later values hold the outputs of a product.

The axes that a product's result has from its weight are its features. They are followed
until an operation reduces them, as a loss does.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jax.errors import InconclusiveDimensionOperation
from jax.extend.core import JaxprEqn

from jaxsparse._trace.graph import Step, ValueType
from jaxsparse._trace.jaxpr import var_shape


#: Axes that hold features; None after they were reduced.
Features = frozenset[int] | None

#: Reductions to one element, in any order; their parameter `axes` names the axes.
REDUCTIONS = frozenset(
    [
        "reduce_and",
        "reduce_max",
        "reduce_min",
        "reduce_or",
        "reduce_prod",
        "reduce_sum",
        "reduce_xor",
    ]
)


def move_features(
    step: Step, operand: int, features: frozenset[int], values: Sequence[ValueType]
) -> Features:
    """Returns the axes of a step's outputs that hold features of one of its operands.

    An operation without a rule keeps the axes if it keeps their number, and spreads the
    features over all axes otherwise.
    """
    old = values[step.operands[operand]].shape
    new = values[step.outputs[0]].shape
    name = step.name
    if name == "stop_gradient":  # a target of a loss
        return None
    if name in REDUCTIONS or name in ("argmax", "argmin"):
        moved = _reduce(features, _params(step)["axes"], old)
    elif name in _MOVES:
        moved = _MOVES[name](features, old, new, step)
    elif name == "dot_general":
        moved = _dot_general(features, operand, step)
    elif name == "gather" and operand == 0:
        moved = _gather(features, old, step)
    elif len(old) == len(new):
        moved = features
    else:
        moved = frozenset(range(len(new)))
    if moved is None or math.prod(new[axis] for axis in moved) == 1:
        return None
    return moved


def product_features(eqn: JaxprEqn, weight: int) -> frozenset[int]:
    """Returns the axes of a product's result that come from its weight alone.

    `weight` is the index of the weight among the operands.
    """
    name, rank = eqn.primitive.name, len(var_shape(eqn.outvars[0]))
    if name == "conv_general_dilated":
        return frozenset([eqn.params["dimension_numbers"].out_spec[1]])
    if name == "dot_general":
        contracted, batch = eqn.params["dimension_numbers"]
        free = len(var_shape(eqn.invars[weight])) - len(
            {*contracted[weight], *batch[weight]}
        )
        first = rank - free if weight else len(batch[0])
        return frozenset(range(first, first + free))
    return frozenset([rank - 1])


def _params(step: Step) -> dict[str, Any]:
    assert step.eqn is not None
    return step.eqn.params


def _reduce(
    features: frozenset[int], axes: Iterable[Any], old: Sequence[Any]
) -> Features:
    """Removes axes. Features are reduced if one of theirs is removed."""
    axes = {int(axis) for axis in axes}
    if any(axis in axes and old[axis] != 1 for axis in features):
        return None
    return frozenset(
        axis - sum(other < axis for other in axes) for axis in features - axes
    )


def _squeeze(
    features: frozenset[int], old: Sequence[Any], _: Sequence[Any], step: Step
) -> Features:
    return _reduce(features, _params(step)["dimensions"], old)


def _broadcast(
    features: frozenset[int], _: Sequence[Any], __: Sequence[Any], step: Step
) -> Features:
    axes = _params(step)["broadcast_dimensions"]
    return frozenset(int(axes[axis]) for axis in features)


def _transpose(
    features: frozenset[int], _: Sequence[Any], __: Sequence[Any], step: Step
) -> Features:
    order = list(_params(step)["permutation"])
    return frozenset(order.index(axis) for axis in features)


def _reshape(
    features: frozenset[int], old: Sequence[Any], new: Sequence[Any], _: Step
) -> Features:
    """In row-major order an axis holds the strides from its own to the next one's."""
    span = lambda shape, axis: (
        math.prod(shape[axis + 1 :]),
        math.prod(shape[axis:]),
    )
    spans = [span(old, axis) for axis in features if old[axis] != 1]
    overlaps = lambda low, high: any(
        _may_be_less(low, stop) and _may_be_less(start, high) for start, stop in spans
    )
    return frozenset(
        axis
        for axis, size in enumerate(new)
        if size != 1 and overlaps(*span(new, axis))
    )


def _may_be_less(size: Any, other: Any) -> bool:
    try:
        return size < other
    except InconclusiveDimensionOperation:  # sizes may be symbols
        return True


def _unstack(
    features: frozenset[int], old: Sequence[Any], _: Sequence[Any], step: Step
) -> Features:
    along = _stacked_axis(step)
    return _reduce(features - {along}, [along], old)


def _stack(
    features: frozenset[int], _: Sequence[Any], __: Sequence[Any], step: Step
) -> Features:
    along = _stacked_axis(step)
    return frozenset(axis + (axis >= along) for axis in features)


def _stacked_axis(step: Step) -> int:
    """Returns the axis of `jnp.stack`, or of what a loop stacks, the first."""
    return 0 if step.eqn is None else int(_params(step)["axis"])


#: `(features, shape of the operand, shape of the result, step) -> features`.
_MOVES: dict[
    str, Callable[[frozenset[int], Sequence[Any], Sequence[Any], Step], Features]
] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "stack": _stack,
    "transpose": _transpose,
    "unstack": _unstack,
}


def _dot_general(features: frozenset[int], operand: int, step: Step) -> Features:
    contracted, batch = _params(step)["dimension_numbers"]
    if features.intersection(contracted[operand]):
        return None
    eqn = step.eqn
    assert eqn is not None
    inner = {*contracted[operand], *batch[operand]}
    free = [i for i in range(len(var_shape(eqn.invars[operand]))) if i not in inner]
    rank = len(var_shape(eqn.outvars[0]))
    first = rank - len(free) if operand else len(batch[0])
    moved = {axis: i for i, axis in enumerate(batch[operand])}
    moved |= {axis: i for i, axis in enumerate(free, first)}
    return frozenset(moved[axis] for axis in features)


def _gather(features: frozenset[int], old: Sequence[Any], step: Step) -> Features:
    """One index along an axis of features, such as a label, reduces them."""
    numbers, sizes = _params(step)["dimension_numbers"], _params(step)["slice_sizes"]
    if any(sizes[axis] == 1 < old[axis] for axis in features):
        return None
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = [axis for axis in range(len(old)) if axis not in gone]
    moved = dict(zip(kept, numbers.offset_dims, strict=True))
    return frozenset(moved[axis] for axis in features - gone)
