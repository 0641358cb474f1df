"""A program as one graph of steps, its calls, loops and branches inlined."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import JaxprEqn

from jaxsparse._trace.jaxpr import (
    BoundJaxpr,
    Call,
    Cond,
    ControlFlow,
    Path,
    Scan,
    ShardMap,
    While,
    body_part,
    control_flow,
    interpret,
    step_into,
)


class ValueType(NamedTuple):
    """The shape and the dtype of a value. Sizes are integers or symbols."""

    shape: tuple[Any, ...]
    dtype: Any


class Step(NamedTuple):
    """One equation, or one of the moves that loops and branches make.

    Attributes:
      name: the name of the primitive; `"join"` for a value that is one of several,
        `"unstack"` and `"stack"` for the inputs and outputs of a scan.
      operands: the numbers of its operands.
      outputs: the numbers of its outputs.
      eqn: the equation; None for a move.
      path: the path of the equation; for a move that of the body which it belongs to.
    """

    name: str
    operands: tuple[int, ...]
    outputs: tuple[int, ...]
    eqn: JaxprEqn | None = None
    path: Path = ()


class Decision(NamedTuple):
    """A value that decides what runs: which branch, or whether a loop goes on.

    Attributes:
      value: its number.
      carry: for a loop, the numbers of what it carries. In a batch of loops the axes of
        the value are their leading axes.
    """

    value: int
    carry: tuple[int, ...] = ()


class Graph(NamedTuple):
    """The steps of a program. Values are numbered; the first are the inputs.

    Attributes:
      steps: the steps, each after those that it depends on, but for a join at the
        start of a loop, which also depends on the loop's end.
      values: the type of each value.
      has_loops: whether a step depends on a later one.
      outputs: the numbers of the results.
      constants: the literals and constant arrays, by number.
      decisions: what decides between branches and ends loops.
    """

    steps: list[Step]
    values: list[ValueType]
    has_loops: bool
    outputs: list[int]
    constants: dict[int, Any]
    decisions: list[Decision]


def graph_of(bound: BoundJaxpr, keep: Iterable[int] = ()) -> Graph:
    """Returns the graph of a jaxpr. The bodies of loops are in it once.

    Args:
      bound: the jaxpr.
      keep: the numbers of inputs. What is computed from them is in the graph though no
        result needs it.
    """
    builder = _Builder([], [], {}, {}, [], set(keep))
    inputs = [builder.value(var.aval) for var in bound.jaxpr.invars]
    outputs = _inline(bound, inputs, builder, ())
    steps = [
        step._replace(operands=builder.loops.get(i, step.operands))
        for i, step in enumerate(builder.steps)
    ]
    return Graph(
        steps,
        builder.values,
        bool(builder.loops),
        outputs,
        builder.constants,
        builder.decisions,
    )


class _Builder(NamedTuple):
    """The graph so far.

    Attributes:
      steps: the steps.
      values: the types of the values.
      loops: the operands of the joins at the start of loops, by index of the step.
      constants: the literals and constant arrays, by number.
      decisions: what decides between branches and ends loops.
      kept: the values that stay though no result needs them.
    """

    steps: list[Step]
    values: list[ValueType]
    loops: dict[int, tuple[int, ...]]
    constants: dict[int, Any]
    decisions: list[Decision]
    kept: set[int]

    def value(self, value: Any) -> int:
        """Adds a value like this one and returns its number."""
        dtype = value.dtype if hasattr(value, "dtype") else np.result_type(value)
        self.values.append(ValueType(tuple(getattr(value, "shape", ())), dtype))
        return len(self.values) - 1

    def constant(self, value: Any) -> int:
        """Adds a literal or a constant array and returns its number."""
        number = self.value(value)
        self.constants[number] = value
        return number

    def move(self, name: str, operands: Sequence[int], like: Any, path: Path) -> int:
        """Adds a move with one output and returns the output's number."""
        output = self.value(like)
        self.add(Step(name, tuple(operands), (output,), None, path))
        return output

    def add(self, step: Step) -> None:
        """Adds a step. What is computed from kept values is kept."""
        self.steps.append(step)
        if self.kept.intersection(step.operands):
            self.kept.update(step.outputs)


def _inline(
    bound: BoundJaxpr, args: Sequence[int], builder: _Builder, path: Path
) -> list[int]:
    rule = partial(_equation, builder=builder, path=path)
    return interpret(
        bound, args, rule, builder.constant, keep=builder.kept.__contains__
    )


def _equation(
    eqn: JaxprEqn, inputs: list[int], builder: _Builder, path: Path
) -> Sequence[int]:
    flow = control_flow(eqn)
    if flow is not None:
        return _control_flow(eqn, flow, inputs, builder, path)
    outputs = tuple(builder.value(var.aval) for var in eqn.outvars)
    path = step_into(path, eqn)
    builder.add(Step(eqn.primitive.name, tuple(inputs), outputs, eqn, path))
    return outputs


def _control_flow(
    eqn: JaxprEqn, flow: ControlFlow, inputs: list[int], builder: _Builder, path: Path
) -> Sequence[int]:
    match flow:
        case Call(body) | ShardMap(body=body):
            return _inline(body, inputs, builder, step_into(path, eqn))
        case Cond(branches):
            results = [
                _inline(branch, inputs[1:], builder, step_into(path, eqn, i))
                for i, branch in enumerate(branches)
            ]
            builder.decisions.append(Decision(inputs[0]))
            return [
                builder.move("join", values, var.aval, path)
                for values, var in zip(
                    zip(*results, strict=True), eqn.outvars, strict=True
                )
            ]
        case Scan():
            return _scan(eqn, flow, inputs, builder, step_into(path, eqn))
        case While():
            return _while(eqn, flow, inputs, builder, path)


def _scan(
    eqn: JaxprEqn, scan: Scan, inputs: list[int], builder: _Builder, path: Path
) -> Sequence[int]:
    first_carry, first_xs = scan.num_consts, scan.num_consts + scan.num_carry
    body = scan.body.jaxpr
    xs = [
        builder.move("unstack", [x], var.aval, path)
        for x, var in zip(inputs[first_xs:], body.invars[first_xs:], strict=True)
    ]
    carry, start = _open_loop(inputs[first_carry:first_xs], builder, path)
    outputs = _inline(scan.body, [*inputs[:first_carry], *carry, *xs], builder, path)
    _close_loop(start, outputs[: scan.num_carry], builder)
    stacked = [
        builder.move("stack", [y], var.aval, path)
        for y, var in zip(
            outputs[scan.num_carry :], eqn.outvars[scan.num_carry :], strict=True
        )
    ]
    return [*outputs[: scan.num_carry], *stacked]


def _while(
    eqn: JaxprEqn, loop: While, inputs: list[int], builder: _Builder, path: Path
) -> Sequence[int]:
    first_body, first_carry = loop.num_condition, loop.num_condition + loop.num_body
    inside = step_into(path, eqn, body_part(loop.condition))
    carry, start = _open_loop(inputs[first_carry:], builder, inside)
    (go_on,) = _inline(
        loop.condition,
        [*inputs[:first_body], *carry],
        builder,
        step_into(path, eqn, 1),
    )
    builder.decisions.append(Decision(go_on, tuple(carry)))
    outputs = _inline(
        loop.body, [*inputs[first_body:first_carry], *carry], builder, inside
    )
    _close_loop(start, outputs, builder)
    return carry


def _open_loop(
    carry: Sequence[int], builder: _Builder, path: Path
) -> tuple[list[int], int]:
    """Joins the first values of carries with later ones, which are not known yet."""
    start = len(builder.steps)
    joined = [builder.move("join", [x], builder.values[x], path) for x in carry]
    return joined, start


def _close_loop(start: int, carry: Sequence[int], builder: _Builder) -> None:
    for i, value in enumerate(carry, start):
        (first,) = builder.steps[i].operands
        builder.loops[i] = (first, value)
