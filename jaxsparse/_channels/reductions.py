"""Rules of operations along an axis: sums, largest elements, sorting, windows."""

from collections.abc import Sequence

from jax.extend.core import JaxprEqn

from jaxsparse._channels.parts import mark, mix
from jaxsparse._channels.ties import fix_ties
from jaxsparse._channels.value import (
    Record,
    Value,
    mixed_axes,
    unify_axes,
    use_as_numbers,
)
from jaxsparse._trace import var_shape


#: Why no channel is taken out that is summed up.
NORMALISED = "normalised over"

#: What goes along an axis in order.
CUMULATIVE = frozenset(["cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"])

#: Reductions of the windows of one operand.
WINDOWS = frozenset(["reduce_window_max", "reduce_window_min", "reduce_window_sum"])


def reduce_axes(
    eqn: JaxprEqn, operands: Sequence[Value], record: Record
) -> list[Value]:
    """Sums axes up. Without one of its channels a norm has other statistics."""
    value, gone = operands[0], eqn.params["axes"]
    for i in gone:
        mark(record.parts, value.axes[i], "kept", NORMALISED)
    return [Value(tuple(axis for i, axis in enumerate(value.axes) if i not in gone))]


def find_largest(
    eqn: JaxprEqn, operands: Sequence[Value], record: Record
) -> list[Value]:
    """Returns a position in the axis."""
    (value,), (along,) = operands, eqn.params["axes"]
    axis = value.axes[along]
    mark(record.parts, axis, "chosen", "a router chooses")
    fix_ties(record.parts, value, axis)
    axes = tuple(x for i, x in enumerate(value.axes) if i != along)
    return [Value(axes, (axis,))]


def top_k(eqn: JaxprEqn, operands: Sequence[Value], record: Record) -> list[Value]:
    """Returns the largest elements and their positions, in an order of their own."""
    (value,), params = operands, eqn.params
    along = params.get("axis", params.get("reduction_dimension", -1))
    along %= len(value.axes)
    mark(record.parts, value.axes[along], "chosen", "a router chooses")
    fix_ties(record.parts, value, value.axes[along])
    axes = list(value.axes)
    size = var_shape(eqn.outvars[0])[along]
    (axes[along],) = mixed_axes(record, [size], "ordered by rank")
    return [Value(tuple(axes)), Value(tuple(axes), (value.axes[along],))]


def sort(eqn: JaxprEqn, operands: Sequence[Value], record: Record) -> list[Value]:
    """Orders all operands by the first ones: their order before does not matter."""
    along, keys = eqn.params["dimension"], eqn.params["num_keys"]
    first, outputs = operands[0], list[Value]()
    for value in operands[1:]:
        unify_axes(record, first.axes, value.axes)
    mark(record.parts, first.axes[along], "kept", "`sort` orders it")
    if len(operands) > 1:
        fix_ties(record.parts, first, first.axes[along])
    axes = list(first.axes)
    sizes = [record.parts.sizes[axes[along]]]
    (axes[along],) = mixed_axes(record, sizes, "ordered by rank")
    for i, value in enumerate(operands):
        if i < keys or len(value.counts) > 1:
            value = use_as_numbers(record, value, "positions are sorted")
        outputs.append(Value(tuple(axes), value.counts))
    return outputs


def accumulate(eqn: JaxprEqn, operands: Sequence[Value], record: Record) -> list[Value]:
    """Goes along an axis in order."""
    axes = operands[0].axes
    mix(record.parts, axes[eqn.params["axis"]], f"`{eqn.primitive.name}`")
    return [Value(axes)]


def reduce_windows(
    eqn: JaxprEqn, operands: Sequence[Value], record: Record
) -> list[Value]:
    """Pools: axes with a window of 1 stay as they are."""
    params, axes = eqn.params, list(operands[0].axes)
    settings = zip(
        params["window_dimensions"],
        params["window_strides"],
        params["padding"],
        params["base_dilation"],
        strict=True,
    )
    for i, setting in enumerate(settings):
        if setting == (1, 1, (0, 0), 1):
            continue
        reason = "a spatial axis of a pooling"
        mix(record.parts, axes[i], reason)
        (axes[i],) = mixed_axes(record, [var_shape(eqn.outvars[0])[i]], reason)
    return [Value(tuple(axes))]
