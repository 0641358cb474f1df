"""How a computation uses its parameters, read from its jaxpr without running it.

Every value carries what it shows of each parameter (`View`). A value that depends on
the inputs shows none: an activation that a bias was added to is not the bias. Where a
view meets a product, a look-up or an operation that is not understood, that is a use.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import dtypes

from jaxsparse._trace import view as views
from jaxsparse._trace.jaxpr import (
    BoundJaxpr,
    Call,
    Cond,
    Path,
    Scan,
    ShardMap,
    While,
    body_part,
    control_flow,
    interpret,
)
from jaxsparse._trace.product_rules import PRODUCTS, record_product
from jaxsparse._trace.record import (
    AbstractValue,
    Record,
    Use,
    combine,
    new_record,
    source_line,
)
from jaxsparse._trace.view_rules import KEEPS_ZEROS, output_views


#: Operations between a parameter and an activation that contract nothing.
_ELEMENTWISE = frozenset(
    [
        "add",
        "add_any",
        "and",
        "atan2",
        "clamp",
        "concatenate",
        "div",
        "eq",
        "ge",
        "gt",
        "le",
        "lt",
        "max",
        "min",
        "mul",
        "ne",
        "nextafter",
        "or",
        "pow",
        "rem",
        "select_n",
        "sub",
        "xor",
    ]
)
#: Operations on one operand of which zeros stay zeros, wherever they move.
_KEEPS_ZERO = KEEPS_ZEROS | {"broadcast_in_dim", "reshape", "squeeze", "transpose"}


def analyse(
    inner: BoundJaxpr, args: Sequence[AbstractValue], record: Record
) -> list[AbstractValue]:
    """Walks through a jaxpr, writing down what parameters are used for."""
    return interpret(inner, args, partial(_equation, record=record), _constant)


def _constant(value: Any) -> AbstractValue:
    # Larger constants are not looked at: that would copy them from the device.
    key = jnp.issubdtype(getattr(value, "dtype", np.int32), dtypes.prng_key)
    return AbstractValue(zero=bool(not key and np.shape(value) == () and value == 0))


def _equation(
    eqn, inputs: list[AbstractValue], record: Record
) -> Sequence[AbstractValue]:
    inside = control_flow(eqn)
    if inside is not None:
        return _control_flow(eqn, inside, inputs, record)
    name = eqn.primitive.name
    if name in PRODUCTS:
        return [record_product(eqn, inputs, record)]
    known = combine(inputs)
    looked_up = name == "gather" or (name == "dynamic_slice" and known.inputs)
    if looked_up and inputs[0].views:
        _note(eqn, inputs[:1], record, "gather")
        return [known]
    if not any(value.views for value in inputs):
        zero = name in _KEEPS_ZERO and inputs[0].zero
        return [known._replace(zero=zero)] * len(eqn.outvars)
    if known.inputs:
        kind = "elementwise" if name in _ELEMENTWISE else "lost"
        _note(eqn, inputs, record, kind)
        return [known] * len(eqn.outvars)
    return [known._replace(views=tuple(view)) for view in output_views(eqn, inputs)]


def _note(eqn, values: Sequence[AbstractValue], record: Record, kind: str) -> None:
    for value in values:
        for view in value.views:
            use = Use(
                eqn.primitive.name, kind, reason=view.lost, source=source_line(eqn)
            )
            record.uses.append((view.leaf, use))


def _control_flow(
    eqn, inside, inputs: list[AbstractValue], record: Record
) -> list[AbstractValue]:
    match inside:
        case Call(body):
            return analyse(body, inputs, record.inside(eqn))
        case Cond(branches):
            results = [
                analyse(branch, inputs[1:], record.inside(eqn, i))
                for i, branch in enumerate(branches)
            ]
            outputs = []
            for values in zip(*results, strict=True):
                output = _depend(_join(values), inputs[0])
                if output.inputs:  # what it shows of parameters is not followed
                    _note(eqn, values, record, "elementwise")
                outputs.append(output)
            return outputs
        case Scan(body, num_consts, num_carry):
            consts = inputs[:num_consts]
            carry = inputs[num_consts : num_consts + num_carry]
            record = record.inside(eqn)
            stacked = inputs[num_consts + num_carry :]
            xs = [_each(value, eqn.params["length"], record.path) for value in stacked]
            run = lambda carry, record: analyse(body, [*consts, *carry, *xs], record)
            outputs = _settle(run, carry, record)
            return [*outputs[:num_carry], *map(_stacked, outputs[num_carry:])]
        case While(condition, body, num_condition, num_body):
            carry = inputs[num_condition + num_body :]
            consts = inputs[num_condition : num_condition + num_body]
            run = lambda carry, record: analyse(body, [*consts, *carry], record)
            outputs = _settle(run, carry, record.inside(eqn, body_part(condition)))
            stopping = [*inputs[:num_condition], *outputs]
            stop = analyse(condition, stopping, record.inside(eqn, 1))
            return [_depend(value, stop[0]) for value in outputs]
        case ShardMap(body, mesh, in_specs):
            shards = [
                _shard(value, var.aval.shape, spec, mesh)
                for value, var, spec in zip(inputs, eqn.invars, in_specs, strict=True)
            ]
            results = analyse(body, shards, record.inside(eqn))
            return [_gone(value, "shard_map") for value in results]
    raise AssertionError(inside)


def _settle(run, carry: list[AbstractValue], record: Record) -> list[AbstractValue]:
    """Runs a loop's body until what its carries show no longer changes."""
    while True:
        trial = new_record()._replace(path=record.path)
        outputs = run(carry, trial)[: len(carry)]
        after = [_join(pair) for pair in zip(carry, outputs, strict=True)]
        if after == carry:
            outputs = run(carry, record)
            return [*carry, *outputs[len(carry) :]]
        carry = after


def _join(values: Sequence[AbstractValue]) -> AbstractValue:
    """What holds for a value that is one of these."""
    known = combine(values)
    either = tuple(dict.fromkeys(view for value in values for view in value.views))
    if any(set(value.views) != set(either) for value in values):
        either = tuple(replace(view, unclear="it is one of several") for view in either)
    return known if known.inputs else known._replace(views=either)


def _depend(value: AbstractValue, on: AbstractValue) -> AbstractValue:
    """The value, where the choice of it depends on another."""
    if not on.inputs:
        return value
    return combine([value, on])


def _each(value: AbstractValue, length: int, scan: Path) -> AbstractValue:
    """One step's part of a stacked input."""
    parts = [v if v.lost else views.step(v, length, scan) for v in value.views]
    return value._replace(views=tuple(parts))


def _stacked(value: AbstractValue) -> AbstractValue:
    return _gone(value, "scan")


def _gone(value: AbstractValue, why: str) -> AbstractValue:
    """A value whose views are not followed any further."""
    return value._replace(views=tuple(views.lost(v, why) for v in value.views))


def _shard(value: AbstractValue, shape: Sequence[int], spec, mesh) -> AbstractValue:
    counts = [1] * len(shape)
    for i, names in enumerate(spec):
        for name in (names,) if isinstance(names, str) else names or ():
            counts[i] *= mesh.shape[name]
    parts = [v if v.lost else views.shard(v, counts, shape) for v in value.views]
    return value._replace(views=tuple(parts))
