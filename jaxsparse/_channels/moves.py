"""Rules of operations that move elements: reshapes, slices, concatenations."""

from collections.abc import Sequence

from jax.extend.core import JaxprEqn

from jaxsparse._channels.families import slice_position
from jaxsparse._channels.parts import mix, new_atom, product, total
from jaxsparse._channels.unify import take_minor, take_range, unify
from jaxsparse._channels.value import (
    Record,
    Value,
    mixed_axes,
    new_axes,
    sizes_of,
    unify_axes,
    use_as_numbers,
)


def broadcast(eqn: JaxprEqn, operands: Sequence[Value], record: Record) -> list[Value]:
    """Copies along a new axis are alike: any order will do."""
    value, shape = operands[0], eqn.params["shape"]
    axes = list(new_axes(record, shape))
    for axis, to in zip(value.axes, eqn.params["broadcast_dimensions"], strict=True):
        if record.parts.sizes[axis] == shape[to]:
            axes[to] = axis
    return [value._replace(axes=tuple(axes))]


def reshape(eqn: JaxprEqn, operands: Sequence[Value], record: Record) -> list[Value]:
    """Splits axes into factors, and merges factors, from the minor end."""
    value, new_sizes = operands[0], tuple(map(int, eqn.params["new_sizes"]))
    name = eqn.primitive.name
    factors, axes = list(value.axes), list[int]()
    if eqn.params["dimensions"] is None:
        for size in reversed(new_sizes):
            taken = take_minor(record.parts, factors, size)
            if taken is None:
                break
            factors, axis = taken
            axes.insert(0, axis)
    reason = f"`{name}` from {sizes_of(record, value.axes)} to {new_sizes} mixes axes"
    rest = new_sizes[: len(new_sizes) - len(axes)]
    if rest:
        for part in factors:
            mix(record.parts, part, reason)
    return [value._replace(axes=(*mixed_axes(record, rest, reason), *axes))]


def transpose(eqn: JaxprEqn, operands: Sequence[Value], _: Record) -> list[Value]:
    """Reorders axes."""
    value = operands[0]
    order = eqn.params["permutation"]
    return [value._replace(axes=tuple(value.axes[i] for i in order))]


def squeeze(eqn: JaxprEqn, operands: Sequence[Value], _: Record) -> list[Value]:
    """Removes axes of size 1."""
    gone, value = eqn.params["dimensions"], operands[0]
    axes = tuple(axis for i, axis in enumerate(value.axes) if i not in gone)
    return [value._replace(axes=axes)]


def slice_axis(
    record: Record, axis: int, start: int, stop: int, stride: int, name: str
) -> int:
    """Returns a range of an axis, with a stride; mixed if it cuts through parts."""
    size, parts = record.parts.sizes[axis], record.parts
    if (start, stop, stride) == (0, size, 1):
        return axis
    taken = None
    if stride == 1:
        taken = take_range(parts, axis, start, stop)
    elif size % stride == 0 and start < stride and size - stop < stride:
        # Every `stride`-th element: one position in the minor factor.
        split = take_minor(parts, [axis], stride)
        if (
            split is not None
            and take_range(parts, split[1], start, start + 1) is not None
        ):
            taken = product(parts, split[0])
    if taken is not None:
        return taken
    reason = f"`{name}` [{start}:{stop}:{stride}] of an axis of size {size}"
    mix(parts, axis, reason)
    return mixed_axes(record, [-(-(stop - start) // stride)], reason)[0]


def slice_(eqn: JaxprEqn, operands: Sequence[Value], record: Record) -> list[Value]:
    """Takes ranges, at whose ends parts are cut."""
    value, params = operands[0], eqn.params
    strides = params["strides"] or [1] * len(value.axes)
    ranges = list(
        zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    )
    for i, (start, stop, _) in enumerate(ranges):
        if stop - start == 1 < record.parts.sizes[value.axes[i]]:
            axes = slice_position(record.parts, value.axes, i, int(start))
            value = value._replace(axes=axes)
    axes = tuple(
        slice_axis(record, axis, int(start), int(stop), int(stride), "slice")
        for axis, (start, stop, stride) in zip(value.axes, ranges, strict=True)
    )
    return [_without_columns(value, axes, record)]


def split(eqn: JaxprEqn, operands: Sequence[Value], record: Record) -> list[Value]:
    """Takes ranges one after the other."""
    value, axis = operands[0], eqn.params["axis"]
    outputs, start = list[Value](), 0
    for size in map(int, eqn.params["sizes"]):
        axes = list(value.axes)
        if size == 1 < record.parts.sizes[axes[axis]]:
            axes = list(slice_position(record.parts, axes, axis, start))
        axes[axis] = slice_axis(record, axes[axis], start, start + size, 1, "split")
        outputs.append(_without_columns(value, tuple(axes), record))
        start += size
    return outputs


def _without_columns(value: Value, axes: tuple[int, ...], record: Record) -> Value:
    """An array of several indices is only understood as a whole."""
    if len(value.counts) > 1:
        value = use_as_numbers(record, value, "an array of indices is sliced")
    return value._replace(axes=axes)


def concatenate(
    eqn: JaxprEqn, operands: Sequence[Value], record: Record
) -> list[Value]:
    """Makes the sum of the axes; the other axes are the same."""
    along = int(eqn.params["dimension"])
    first = operands[0]
    for value in operands[1:]:
        for i, (a, b) in enumerate(zip(first.axes, value.axes, strict=True)):
            if i != along:
                unify(record.parts, a, b)
    axes = list(first.axes)
    axes[along] = total(record.parts, [value.axes[along] for value in operands])
    return [Value(tuple(axes), _joined_counts(along, operands, record))]


def stack(eqn: JaxprEqn, operands: Sequence[Value], record: Record) -> list[Value]:
    """Makes an axis of single elements."""
    first, along = operands[0], eqn.params["axis"]
    for value in operands:
        unify_axes(record, first.axes, value.axes)
        use_as_numbers(record, value, "positions are stacked")
    ones = new_axes(record, [1] * len(operands))
    axes = list(first.axes)
    axes.insert(along, total(record.parts, ones))
    return [Value(tuple(axes))]


def unstack(eqn: JaxprEqn, operands: Sequence[Value], record: Record) -> list[Value]:
    """Takes the elements of an axis apart."""
    value, along = operands[0], eqn.params["axis"]
    outputs = list[Value]()
    for i in range(len(eqn.outvars)):
        axes = list(slice_position(record.parts, value.axes, along, i))
        slice_axis(record, axes.pop(along), i, i + 1, 1, "unstack")
        outputs.append(_without_columns(value, tuple(axes), record))
    return outputs


def tile(eqn: JaxprEqn, operands: Sequence[Value], record: Record) -> list[Value]:
    """Repeats an axis: the copies are alike."""
    axes = [
        product(record.parts, [new_atom(record.parts, int(count)), axis])
        for count, axis in zip(eqn.params["reps"], operands[0].axes, strict=True)
    ]
    return [_without_columns(operands[0], tuple(axes), record)]


def _joined_counts(
    along: int, operands: Sequence[Value], record: Record
) -> tuple[int | None, ...]:
    """Returns what the operands count together: one axis, or one each as columns."""
    if not any(value.counts for value in operands):
        return ()
    last = len(operands[0].axes) - 1
    single = all(len(value.counts) <= 1 and not value.wraps for value in operands)
    columns = along == last and all(
        record.parts.sizes[value.axes[along]] == 1 for value in operands
    )
    if single and columns:
        return tuple(value.counts[0] if value.counts else None for value in operands)
    first, *others = [value.counts[0] for value in operands if value.counts]
    if single and first is not None and len(others) == len(operands) - 1:
        for other in others:
            assert other is not None
            unify(record.parts, first, other)
        return (first,)
    for value in operands:
        use_as_numbers(record, value, "positions are concatenated with numbers")
    return ()


def pad(eqn: JaxprEqn, operands: Sequence[Value], record: Record) -> list[Value]:
    """Adds a part before and after an axis, or cuts them off."""
    axes = list(operands[0].axes)
    for i, ends in enumerate(eqn.params["padding_config"]):
        low, high, interior = map(int, ends)
        axis, size = axes[i], record.parts.sizes[axes[i]]
        if interior and size > 1:
            mix(record.parts, axis, "`pad` between elements")
            sizes = [size + (size - 1) * interior + low + high]
            axes[i] = mixed_axes(record, sizes, "`pad` between elements")[0]
            continue
        start, stop = max(-low, 0), size - max(-high, 0)
        inner = slice_axis(record, axis, start, stop, 1, "pad")
        before, after = (new_atom(record.parts, max(x, 0)) for x in (low, high))
        axes[i] = total(record.parts, [before, inner, after])
    return [Value(tuple(axes))]


def reverse(eqn: JaxprEqn, operands: Sequence[Value], record: Record) -> list[Value]:
    """Each element goes to another position."""
    for i in eqn.params["dimensions"]:
        mix(record.parts, operands[0].axes[i], "`rev`")
    return [Value(operands[0].axes)]
