"""Rules of operations that work element by element, and of positions in them."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from jaxsparse._channels.unify import unify
from jaxsparse._channels.value import Record, Value, use_as_numbers
from jaxsparse._trace import var_shape


#: Operations whose outputs are copies of their operands, in order.
COPIES = frozenset(
    [
        "convert_element_type",
        "copy",
        "copy_p",
        "device_put",
        "mesh_cast",
        "name",
        "optimization_barrier",
        "pbroadcast",
        "pcast",
        "pvary",
        "reduce_precision",
        "reshard",
        "sharding_constraint",
        "stop_gradient",
    ]
)

#: Operations of one output, each element of which depends on those at its position.
_NAMES = (
    "abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e "
    "bitcast_convert_type "
    "cbrt ceil clamp clz complex conj cos cosh digamma div eq eq_to erf erf_inv erfc "
    "exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag integer_pow "
    "is_finite le le_to lgamma log log1p log2 logistic lt lt_to max min mul mulhi ne "
    "neg nextafter not one_minus_square or polygamma population_count pow real "
    "regularized_incomplete_beta rem round rsqrt select_n shift_left "
    "shift_right_arithmetic shift_right_logical sign sin sinh sqrt square sub tan "
    "tanh to_edtype xor zeta"
)
ELEMENTWISE = frozenset(_NAMES.split())


def copy(eqn: JaxprEqn, operands: Sequence[Value], record: Record) -> list[Value]:
    """Returns the operands, each as an output."""
    if eqn.primitive.name != "convert_element_type":
        return list(operands)
    (value,), dtype = operands, eqn.params["new_dtype"]
    if not all(_can_hold(dtype, record, part) for part in value.counts):
        value = use_as_numbers(record, value, f"positions are converted to {dtype}")
    return [value]


def _can_hold(dtype, record: Record, part: int | None) -> bool:
    """Returns whether a dtype tells all positions in a part from one another."""
    if jnp.issubdtype(dtype, jnp.integer):
        largest = int(jnp.iinfo(dtype).max)
    elif jnp.issubdtype(dtype, jnp.floating):
        largest = 2 ** (jnp.finfo(dtype).nmant + 1)
    else:
        return False
    return part is None or record.parts.sizes[part] <= largest


def elementwise(
    eqn: JaxprEqn, operands: Sequence[Value], record: Record
) -> list[Value] | None:
    """Unifies the axes of all operands. Scalars and axes of size 1 are repeated."""
    shape, axes = var_shape(eqn.outvars[0]), list[int]()
    whole = [value for value in operands if value.axes]
    if any(len(value.axes) != len(shape) for value in whole):
        return None
    for i, size in enumerate(shape):
        alike = [x.axes[i] for x in whole if record.parts.sizes[x.axes[i]] == size]
        axes.append(alike[0])
        for axis in alike[1:]:
            unify(record.parts, alike[0], axis)
    name = eqn.primitive.name
    output = Value(tuple(axes))
    if any(value.counts for value in operands):
        return [_POSITIONS.get(name, _as_numbers)(output, operands, name, record)]
    return [output]


def _as_numbers(
    output: Value, operands: Sequence[Value], name: str, record: Record
) -> Value:
    for value in operands:
        use_as_numbers(record, value, f"positions are used as numbers, by `{name}`")
    return output


def _equal(
    output: Value, operands: Sequence[Value], name: str, record: Record
) -> Value:
    """Positions may be compared with positions in the same axis, as one-hot does."""
    one, other = operands
    if len(one.counts) != 1 or len(other.counts) != 1 or one.wraps or other.wraps:
        return _as_numbers(output, operands, name, record)
    assert one.counts[0] is not None
    assert other.counts[0] is not None
    unify(record.parts, one.counts[0], other.counts[0])
    return output


def _less(output: Value, operands: Sequence[Value], name: str, record: Record) -> Value:
    """Whether positions are below zero, which negative indices would be."""
    one, other = operands
    if one.counts and not one.wraps and other.number == 0:
        return output._replace(negative=True)
    return _as_numbers(output, operands, name, record)


def _add(output: Value, operands: Sequence[Value], name: str, record: Record) -> Value:
    """Positions plus the size of their axis, for indices that count from the end."""
    one, other = operands
    (part, *more) = one.counts or (None,)
    if part is not None and not more and not one.wraps and not other.counts:
        if other.number == 0:
            return output._replace(counts=one.counts)
        if other.number == record.parts.sizes[part]:
            return output._replace(counts=one.counts, wraps=True)
    return _as_numbers(output, operands, name, record)


def _select(
    output: Value, operands: Sequence[Value], name: str, record: Record
) -> Value:
    which, *cases = operands
    if which.negative and not cases[0].wraps:
        return output._replace(counts=cases[0].counts)
    first = cases[0].counts
    alike = all(len(x.counts) == 1 and not x.wraps for x in cases)
    if which.counts or not alike or first[0] is None:
        return _as_numbers(output, operands, name, record)
    for case in cases[1:]:
        assert case.counts[0] is not None
        unify(record.parts, first[0], case.counts[0])
    return output._replace(counts=first)


def _clamp(
    output: Value, operands: Sequence[Value], name: str, record: Record
) -> Value:
    """Bounds that hold for all positions change nothing."""
    low, value, high = operands
    (part, *more) = value.counts or (None,)
    if part is not None and not more and not value.wraps:
        last = record.parts.sizes[part] - 1
        numbers = low.number, high.number
        if None not in numbers and numbers[0] <= 0 and numbers[1] >= last:
            return output._replace(counts=(part,))
    return _as_numbers(output, operands, name, record)


#: Operations in which positions stay positions. `(output, operands, name, record)`.
_POSITIONS = {
    "add": _add,
    "clamp": _clamp,
    "eq": _equal,
    "lt": _less,
    "ne": _equal,
    "select_n": _select,
}
