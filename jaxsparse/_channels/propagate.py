"""Reads which axes are the same channels from the graph of a program, in one pass.

Each step unifies the axes that it treats alike. What has no rule, or a rule returns
None for, has all its axes fixed.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from jaxsparse._channels.parts import fix, mix, new_atom, no_parts
from jaxsparse._channels.products import leaves_of
from jaxsparse._channels.rules import POSITION_RULES, RULES
from jaxsparse._channels.ties import KEEPS_DISTINCT, distinct_parts
from jaxsparse._channels.unify import unify
from jaxsparse._channels.value import (
    Record,
    Value,
    new_axes,
    sizes_of,
    unify_axes,
    use_as_numbers,
)
from jaxsparse._trace import Graph, Path, Step, var_shape


#: Constants with more elements are not looked at.
_LARGEST_CONSTANT = 2**20


class Flow(NamedTuple):
    """What is known so far.

    Attributes:
      graph: the program.
      record: what the rules recorded.
      values: its values by number.
      loops: for each loop, by its path, the axis that it goes along.
    """

    graph: Graph
    record: Record
    values: dict[int, Value]
    loops: dict[Path, int]


def read_graph(
    graph: Graph, leaves: Mapping[str, tuple[int, ...]], inputs: int
) -> Flow:
    """Returns the axes of all values of a program.

    Args:
      graph: the program.
      leaves: the shapes of its first inputs, by path.
      inputs: the number of its further inputs.
    """
    flow = Flow(graph, Record(no_parts(), [], []), {}, {})
    for i, (path, shape) in enumerate(leaves.items()):
        axes = new_axes(flow.record, shape)
        leaf = Value(axes, leaves=frozenset([path]), distinct=frozenset(axes))
        _set(flow, i, leaf)
    for i in range(len(leaves), len(leaves) + inputs):
        axes = new_axes(flow.record, graph.values[i].shape)
        for axis in axes:
            fix(flow.record.parts, axis, "an input of the model")
        _set(flow, i, Value(axes, leaves=None))
    for i, constant in graph.constants.items():
        _set(flow, i, _constant(constant, flow.record))
    for step in graph.steps:
        earlier = len(flow.record.regions)
        for i, value in zip(step.outputs, _outputs(flow, step), strict=True):
            _set(flow, i, value)
        _add_loops(flow, step.path, earlier)
    _close_loops(flow)
    _read_decisions(flow)
    for i in graph.outputs:
        value = use_as_numbers(flow.record, flow.values[i], "positions are returned")
        for axis in value.axes:
            fix(flow.record.parts, axis, "an output of the model")
    return flow


def _set(flow: Flow, number: int, value: Value) -> None:
    flow.values[number] = value
    counts = [part for part in value.counts if part is not None]
    flow.record.regions.append(value.axes)
    if counts:  # positions in an axis can be separate for what the value has itself
        flow.record.regions.append((*value.axes, *counts))


def _add_loops(flow: Flow, path: Path, earlier: int) -> None:
    """Adds the axes of the loops around a step to all but the earlier regions."""
    ends = [i for i, step in enumerate(path, 1) if step.primitive == "scan"]
    loops = [flow.loops[path[:end]] for end in ends if path[:end] in flow.loops]
    regions = flow.record.regions
    regions[earlier:] = [(*region, *loops) for region in regions[earlier:]]


def _constant(constant: Any, record: Record) -> Value:
    """A constant fixes the axes along which its elements differ."""
    shape = np.shape(constant)
    axes = new_axes(record, shape)
    is_key = jnp.issubdtype(jax.dtypes.result_type(constant), jax.dtypes.extended)
    if is_key or np.prod(shape) > _LARGEST_CONSTANT:
        for axis in axes:
            fix(record.parts, axis, "a constant of the model")
        return Value(axes)
    array = np.asarray(constant)
    for i, axis in enumerate(axes):
        first = array.take([0], i) if array.shape[i] else array
        if (array != first).any():
            fix(record.parts, axis, "a constant of the model")
    alike = array.size > 0 and (array == array.flat[0]).all()
    return Value(axes, number=array.flat[0] if alike else None)


def _outputs(flow: Flow, step: Step) -> list[Value]:
    """Returns the outputs of a step."""
    operands = [flow.values[i] for i in step.operands if i in flow.values]
    if step.eqn is None:
        return [_move(flow, step, operands)]
    name, record = step.name, flow.record
    if name not in POSITION_RULES:
        operands = [
            use_as_numbers(record, x, f"positions are used as numbers, by `{name}`")
            for x in operands
        ]
    outputs = None
    is_plain = _is_plain(step.eqn, operands, record)
    if name in RULES and is_plain:
        outputs = RULES[name](step.eqn, operands, record)
    if outputs is None:
        reason = f"`{name}`" if is_plain else f"shards or no elements, in `{name}`"
        outputs = _not_understood(step.eqn, operands, record, reason)
    leaves = leaves_of(operands)
    if name in KEEPS_DISTINCT:
        distinct = distinct_parts(record.parts, operands)
        outputs = [value._replace(distinct=distinct) for value in outputs]
    return [value._replace(leaves=leaves) for value in outputs]


def _is_plain(eqn: JaxprEqn, operands: Sequence[Value], record: Record) -> bool:
    """Returns whether all operands are whole arrays, not shards, and not empty."""
    shapes = [var_shape(var) for var in (*eqn.invars, *eqn.outvars)]
    return all(size > 0 for shape in shapes for size in shape) and all(
        sizes_of(record, value.axes) == shape
        for value, shape in zip(operands, shapes, strict=False)
    )


def _not_understood(
    eqn: JaxprEqn, operands: Sequence[Value], record: Record, reason: str
) -> list[Value]:
    outputs = [Value(new_axes(record, var_shape(var))) for var in eqn.outvars]
    for value in (*operands, *outputs):
        value = use_as_numbers(record, value, reason)
        for axis in value.axes:
            mix(record.parts, axis, reason)
    return outputs


def _move(flow: Flow, step: Step, operands: Sequence[Value]) -> Value:
    """Returns the output of a move that loops and branches make."""
    first, record = operands[0], flow.record
    (output,) = step.outputs
    match step.name:
        case "unstack":
            axis, *axes = first.axes
            _loop_along(flow, step.path, axis)
            return first._replace(axes=tuple(axes))
        case "stack":
            value = use_as_numbers(record, first, "positions are stacked in a loop")
            axis = new_atom(record.parts, flow.graph.values[output].shape[0])
            _loop_along(flow, step.path, axis)
            return value._replace(axes=(axis, *value.axes))
    for value in operands:
        use_as_numbers(record, value, "positions are carried or chosen by a branch")
        unify_axes(record, first.axes, value.axes)
    is_loop = len(operands) < len(step.operands)
    return Value(first.axes, leaves=None if is_loop else leaves_of(operands))


def _loop_along(flow: Flow, path: Path, axis: int) -> None:
    """Records that a loop goes along an axis, in order."""
    fix(flow.record.parts, axis, "a loop goes along it")
    unify(flow.record.parts, axis, flow.loops.setdefault(path, axis))


def _close_loops(flow: Flow) -> None:
    """Unifies what a loop carries with what it carried before."""
    for step in flow.graph.steps:
        if step.eqn is None and step.name == "join":
            for i in step.operands:
                reason = "positions are carried by a loop"
                value = use_as_numbers(flow.record, flow.values[i], reason)
                joined = flow.values[step.outputs[0]]
                unify_axes(flow.record, joined.axes, value.axes)


def _read_decisions(flow: Flow) -> None:
    """What decides which branch runs is a number; so is what ends a batch of loops."""
    record = flow.record
    for decision in flow.graph.decisions:
        reason = "positions choose a branch"
        value = use_as_numbers(record, flow.values[decision.value], reason)
        ends = [value.axes]
        ends += [flow.values[i].axes[: len(value.axes)] for i in decision.carry]
        for axis in (axis for axes in ends for axis in axes):
            fix(record.parts, axis, "loops in a batch end one by one")
