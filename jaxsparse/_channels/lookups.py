"""Rules of lookups: what is read or written at positions that are computed."""

from collections.abc import Sequence

from jax.extend.core import JaxprEqn
from jax.lax import GatherScatterMode

from jaxsparse._channels.moves import slice_axis
from jaxsparse._channels.parts import fix, mix, new_atom
from jaxsparse._channels.unify import take_range, unify
from jaxsparse._channels.value import (
    Record,
    Value,
    mixed_axes,
    new_axes,
    sizes_of,
    use_as_numbers,
)
from jaxsparse._trace import var_shape


#: Scatters whose updates may come in any order.
SCATTERS = frozenset(
    [
        "scatter",
        "scatter-add",
        "scatter-max",
        "scatter-min",
        "scatter-mul",
        "scatter-sub",
    ]
)


def iota(eqn: JaxprEqn, _: Sequence[Value], record: Record) -> list[Value]:
    """Counts: it holds the positions of its own axis."""
    axes = new_axes(record, eqn.params["shape"])
    return [Value(axes, (axes[eqn.params["dimension"]],))]


def random_bits(eqn: JaxprEqn, _: Sequence[Value], record: Record) -> list[Value]:
    """Each position has a number of its own."""
    axes = new_axes(record, var_shape(eqn.outvars[0]))
    for axis in axes:
        fix(record.parts, axis, "random numbers")
    return [Value(axes)]


def _look_up(record: Record, axis: int, counts: int | None) -> None:
    """Records that elements at positions along an axis are read or written."""
    if counts is None:
        fix(record.parts, axis, "looked up by numbers")
    else:
        unify(record.parts, axis, counts)


def _columns(record: Record, indices: Value, count: int) -> Sequence[int | None]:
    """Returns for each index in an array of indices what it counts."""
    if len(indices.counts) == count and not indices.wraps:
        return indices.counts
    use_as_numbers(record, indices, "looked up by numbers")
    return [None] * count


def gather(eqn: JaxprEqn, operands: Sequence[Value], record: Record) -> list[Value]:
    """Whole axes pass; those that are looked up are fixed unless positions do it."""
    operand, indices = operands
    numbers, window = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    counts = _columns(record, indices, len(numbers.start_index_map))
    inner = list(operand.axes)
    for axis, along in zip(numbers.start_index_map, counts, strict=True):
        inner[axis] = _window(record, inner[axis], window[axis], along)
    for axis, size in enumerate(window):
        is_batch = axis in numbers.operand_batching_dims
        if record.parts.sizes[inner[axis]] != size and not is_batch:
            inner[axis] = slice_axis(record, inner[axis], 0, size, 1, "gather")
    _unify_batches(
        record,
        [operand.axes[i] for i in numbers.operand_batching_dims],
        [indices.axes[i] for i in numbers.start_indices_batching_dims],
    )
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    offsets = [x for i, x in enumerate(inner) if i not in gone]
    batches = iter(indices.axes[:-1])
    _add_region(record, operand, numbers.operand_batching_dims, indices.axes[:-1])
    passed = dict(zip(numbers.offset_dims, offsets, strict=True))
    rank = len(var_shape(eqn.outvars[0]))
    axes = tuple(passed[i] if i in passed else next(batches) for i in range(rank))
    in_bounds = eqn.params["mode"] != GatherScatterMode.FILL_OR_DROP
    if operand.counts and (len(operand.counts) > 1 or not in_bounds):
        operand = use_as_numbers(record, operand, "positions are looked up")
    for path in operand.leaves or ():
        record.roles.extend((path, axis, "output") for axis in offsets)
    return [Value(axes, operand.counts)]


def _window(record: Record, axis: int, size: int, counts: int | None) -> int:
    """Returns what a window that starts at some position shows of an axis."""
    whole = record.parts.sizes[axis]
    if size == whole:
        return axis
    if size == 1:
        _look_up(record, axis, counts)
        return new_atom(record.parts, 1)
    if counts is not None:
        fix(record.parts, counts, "a window starts at a position")
    reason = f"a window of {size} of {whole} starts anywhere"
    mix(record.parts, axis, reason)
    return mixed_axes(record, [size], reason)[0]


def _unify_batches(record: Record, one: Sequence[int], other: Sequence[int]) -> None:
    for a, b in zip(one, other, strict=True):
        unify(record.parts, a, b)


def scatter(
    eqn: JaxprEqn, operands: Sequence[Value], record: Record
) -> list[Value] | None:
    """As `gather`, the other way round."""
    operand, indices, updates = operands
    numbers = eqn.params["dimension_numbers"]
    counts = _columns(record, indices, len(numbers.scatter_dims_to_operand_dims))
    targets = dict(zip(numbers.scatter_dims_to_operand_dims, counts, strict=True))
    gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    kept = [i for i in range(len(operand.axes)) if i not in gone]
    for i, to in zip(kept, numbers.update_window_dims, strict=True):
        one, other = operand.axes[i], updates.axes[to]
        if sizes_of(record, [one]) == sizes_of(record, [other]):
            unify(record.parts, one, other)
            continue
        for axis in (one, other):
            mix(record.parts, axis, "updated in a window that starts anywhere")
        if (counts_along := targets.get(i)) is not None:
            fix(record.parts, counts_along, "a window starts at a position")
    for i in numbers.inserted_window_dims:
        _look_up(record, operand.axes[i], targets.get(i))
    _unify_batches(
        record,
        [operand.axes[i] for i in numbers.operand_batching_dims],
        [indices.axes[i] for i in numbers.scatter_indices_batching_dims],
    )
    windows = numbers.update_window_dims
    batches = [x for i, x in enumerate(updates.axes) if i not in windows]
    _unify_batches(record, indices.axes[:-1], batches)
    if eqn.primitive.name == "scatter" and not eqn.params["unique_indices"]:
        for axis in batches:  # of several updates of one element, one stays
            mix(record.parts, axis, "updates overwrite each other")
    _add_region(record, operand, numbers.operand_batching_dims, batches)
    return [Value(operand.axes)]


def _add_region(
    record: Record, operand: Value, batching: Sequence[int], others: Sequence[int]
) -> None:
    """Records the axes of a lookup: those it goes along, and those it is done for."""
    own = [axis for i, axis in enumerate(operand.axes) if i not in batching]
    record.regions.append((*own, *others))


def dynamic_slice(
    eqn: JaxprEqn, operands: Sequence[Value], record: Record
) -> list[Value]:
    """A slice at known positions; a lookup, or a window, elsewhere."""
    value, *starts = operands
    axes = list(value.axes)
    for i, (start, size) in enumerate(
        zip(starts, eqn.params["slice_sizes"], strict=True)
    ):
        axes[i] = _dynamic_range(record, axes[i], start, size)
    if len(value.counts) > 1:
        value = use_as_numbers(record, value, "an array of indices is sliced")
    return [value._replace(axes=tuple(axes))]


def _dynamic_range(record: Record, axis: int, start: Value, size: int) -> int:
    whole = record.parts.sizes[axis]
    if start.number is not None and size < whole:
        first = min(max(int(start.number), 0), whole - size)
        return slice_axis(record, axis, first, first + size, 1, "dynamic_slice")
    (counts,) = _columns(record, start, 1)
    return _window(record, axis, size, counts)


def dynamic_update_slice(
    _: JaxprEqn, operands: Sequence[Value], record: Record
) -> list[Value]:
    """Overwrites a range at a known position, an element, or a window."""
    value, update, *starts = operands
    for one, other, start in zip(value.axes, update.axes, starts, strict=True):
        whole, size = sizes_of(record, [one, other])
        if whole == size:
            use_as_numbers(record, start, "looked up by numbers")
            unify(record.parts, one, other)
            continue
        part = None
        if start.number is not None:
            first = min(max(int(start.number), 0), whole - size)
            part = take_range(record.parts, one, first, first + size)
        elif size == 1:
            (counts,) = _columns(record, start, 1)
            _look_up(record, one, counts)
            continue
        if part is not None:
            unify(record.parts, part, other)
            continue
        use_as_numbers(record, start, "a window starts at a position")
        for axis in (one, other):
            mix(record.parts, axis, "updated in a window that starts anywhere")
    return [Value(value.axes)]
