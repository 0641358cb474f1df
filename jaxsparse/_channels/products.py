"""Rules of matmuls and convolutions."""

import math
from collections.abc import Iterable, Sequence
from itertools import chain

from jax.extend.core import JaxprEqn

from jaxsparse._channels.groups import ChannelRole
from jaxsparse._channels.parts import fix, mark, mix, new_atom, product
from jaxsparse._channels.reductions import NORMALISED
from jaxsparse._channels.unify import unify
from jaxsparse._channels.value import Record, Value, mixed_axes, sizes_of
from jaxsparse._trace import var_shape


def _note(record: Record, value: Value, axes: Iterable[int], role: ChannelRole) -> None:
    """Records what a product does with axes of a value that is made of leaves."""
    for path in value.leaves or ():
        record.roles.extend((path, axis, role) for axis in axes)


def dot_general(
    eqn: JaxprEqn, operands: Sequence[Value], record: Record
) -> list[Value]:
    """What is contracted, and what is a batch, is the same in both operands."""
    contracted, batch = eqn.params["dimension_numbers"]
    return [_dot(operands[0], operands[1], contracted, batch, (), record)]


def _dot(
    left: Value,
    right: Value,
    contracted: Sequence[Sequence[int]],
    batch: Sequence[Sequence[int]],
    gone: Sequence[int],
    record: Record,
) -> Value:
    """Returns the product, in which the axes `gone` of the second operand are not."""
    sums = [left.axes[i] for i in contracted[0]]
    alike = sums == [right.axes[i] for i in contracted[1]]
    for one, other in (contracted, batch):
        for i, j in zip(one, other, strict=True):
            unify(record.parts, left.axes[i], right.axes[j])
    batches = [left.axes[i] for i in batch[0]]
    free: list[list[int]] = []
    for k, value in enumerate((left, right)):
        inner = {*contracted[k], *batch[k], *(gone if k else ())}
        free.append([x for i, x in enumerate(value.axes) if i not in inner])
        _note(record, value, [value.axes[i] for i in contracted[k]], "input")
        _note(record, value, free[k], "output")
    sizes = [math.prod(sizes_of(record, axes)) for axes in free]
    if _is_sum(left, right, sizes, alike):
        for axis in sums:
            mark(record.parts, axis, "kept", NORMALISED)
    output = (*batches, *free[0], *free[1])
    record.regions.append((*output, *sums))
    return Value(output, distinct=_distinct((left, right), output))


def _is_sum(left: Value, right: Value, free: Sequence[int], alike: bool) -> bool:
    """Returns whether a product is what `(x * y).sum(...)` or `x.mean(...)` could be.

    It is if no axes are free, as for the squares of a norm, or if it is one with a
    constant, such as `x @ jnp.full((size, 1), 1 / size)`. Products of activations with
    weights, or of queries with keys, are something else.

    Args:
      left: an operand.
      right: the other operand.
      free: for each of them the product of the sizes of its free axes.
      alike: whether the same axes are summed up in both, as in the square of a norm,
        but not in the product of one query with one key.
    """
    weights = [bool(value.leaves) for value in (left, right)]
    constant = any(value.leaves == frozenset() for value in (left, right))
    if any(weights):
        return all(weights) and free == [1, 1]
    return constant or (alike and free == [1, 1])


def _distinct(operands: Sequence[Value], output: Sequence[int]) -> frozenset[int]:
    """Returns the axes of a result along which a weight has different elements."""
    weights = [value for value in operands if value.leaves]
    return frozenset(x for value in weights for x in value.axes if x in output)


def ragged_dot(
    eqn: JaxprEqn, operands: Sequence[Value], record: Record
) -> list[Value] | None:
    """Rows are sorted by their group, so that the order of both matters."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    contracted, batch = numbers.dot_dimension_numbers
    left, right, sizes = operands[:3]
    (ragged,) = numbers.lhs_ragged_dimensions
    groups = numbers.rhs_group_dimensions
    if ragged in contracted[0] or ragged in batch[0] or len(operands) != 3:
        return None
    for axis in (left.axes[ragged], *(right.axes[i] for i in groups), *sizes.axes):
        fix(record.parts, axis, "rows are sorted by it, for `ragged_dot`")
    return [_dot(left, right, contracted, batch, groups, record)]


def convolution(
    eqn: JaxprEqn, operands: Sequence[Value], record: Record
) -> list[Value]:
    """Input channels are those of the kernel; window axes are mixed.

    The channels of a grouped convolution are a product: groups, and channels of one.
    """
    image, kernel = operands
    numbers, parts = eqn.params["dimension_numbers"], record.parts
    batch, channels, *spatial = (image.axes[i] for i in numbers.lhs_spec)
    outputs, inputs, *window = (kernel.axes[i] for i in numbers.rhs_spec)
    groups = eqn.params["feature_group_count"]
    batches = eqn.params["batch_group_count"]
    group, sums = list[int](), [inputs]
    rest = new_atom(parts, parts.sizes[outputs] // groups // batches)
    if groups > 1:
        group = [new_atom(parts, groups)]
        unify(parts, channels, product(parts, [*group, inputs]))
        unify(parts, outputs, product(parts, [*group, rest]))
    else:
        unify(parts, channels, inputs)
    if batches > 1:
        group = [new_atom(parts, batches)]
        inner = new_atom(parts, parts.sizes[batch] // batches)
        unify(parts, batch, product(parts, [*group, inner]))
        unify(parts, outputs, product(parts, [*group, rest]))
        batch = inner
    results = _spatial_axes(eqn, spatial, window, record)
    axes = dict(zip(numbers.out_spec, (batch, outputs, *results), strict=True))
    distinct = _distinct([kernel], [outputs])
    _note(record, kernel, sums, "input")
    _note(record, kernel, [outputs], "output")
    record.regions.append((batch, outputs, *results, *sums, *window))
    return [Value(tuple(axes[i] for i in range(len(axes))), distinct=distinct)]


def _spatial_axes(
    eqn: JaxprEqn, spatial: Sequence[int], window: Sequence[int], record: Record
) -> list[int]:
    """Returns the spatial axes of the result; those of a window of 1 stay as they are.

    A window is turned or shifted with the image, so that both are mixed.
    """
    params, results = eqn.params, list[int]()
    shape = var_shape(eqn.outvars[0])
    out = params["dimension_numbers"].out_spec[2:]
    settings = zip(
        params["window_strides"],
        params["padding"],
        params["lhs_dilation"],
        strict=True,
    )
    for axis, offset, size, setting in zip(spatial, window, out, settings, strict=True):
        if record.parts.sizes[offset] == 1 and setting == (1, (0, 0), 1):
            results.append(axis)
            continue
        reason = "a spatial axis of a convolution"
        mix(record.parts, axis, reason)
        mix(record.parts, offset, reason)
        results.extend(mixed_axes(record, [shape[size]], reason))
    return results


def leaves_of(operands: Sequence[Value]) -> frozenset[str] | None:
    """Returns the leaves that an output is computed from; None if from inputs too."""
    leaves = [value.leaves for value in operands]
    if any(x is None for x in leaves):
        return None
    return frozenset(chain.from_iterable(x for x in leaves if x is not None))
