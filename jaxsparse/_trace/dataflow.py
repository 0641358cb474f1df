"""How a computation uses its parameters, read from its jaxpr without running it.

Every value carries how it shows each parameter (`View`). A value that depends on the
inputs carries no views: an activation that a bias was added to is not the bias. A use
is recorded where a view meets a product, a look-up or an operation that is not
understood.
"""

from collections.abc import Callable, Sequence, Set as AbstractSet
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import dtypes
from jax.core import Tracer
from jax.extend.core import JaxprEqn

from jaxsparse._trace.combination_rules import union
from jaxsparse._trace.jaxpr import (
    BoundJaxpr,
    Call,
    Cond,
    ControlFlow,
    Scan,
    ShardMap,
    While,
    body_part,
    control_flow,
    interpret,
    var_shape,
)
from jaxsparse._trace.lookups import one_hot_output, shift_axes
from jaxsparse._trace.product_rules import PRODUCTS, record_product
from jaxsparse._trace.record import (
    AbstractValue,
    Record,
    Use,
    UseKind,
    combine,
    new_record,
    source_line,
)
from jaxsparse._trace.selected import is_scaled_by_inputs, selected_weights
from jaxsparse._trace.view_rules import KEEPS_ZEROS, output_views


#: Elementwise operations between a parameter and an activation.
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
#: Operations that leave out elements, and with them parameters: that is no use.
_CUTS = frozenset(["slice", "split"])
#: Operations on one operand whose outputs are zeros if the operand is.
_KEEPS_ZERO = KEEPS_ZEROS | {"broadcast_in_dim", "reshape", "squeeze", "transpose"}


def analyse(
    bound: BoundJaxpr, args: Sequence[AbstractValue], record: Record
) -> list[AbstractValue]:
    """Propagates abstract values through a jaxpr and records the uses of parameters."""
    return interpret(bound, args, partial(_equation, record=record), _constant)


def _constant(value: Any) -> AbstractValue:
    # A constant vector of integers lists all choices, as `arange` does.
    integers = jnp.issubdtype(getattr(value, "dtype", np.float32), np.integer)
    lists = np.ndim(value) == 1 and integers
    return AbstractValue(sign=_sign(value), counts=0 if lists else None)


def _sign(value: Any) -> int | None:
    """Returns the sign of a constant scalar, if it is known and has one.

    A traced constant, closed over by the function, has no value yet. Larger ones are
    not read: that would copy them from the device.
    """
    key = jnp.issubdtype(getattr(value, "dtype", np.int32), dtypes.prng_key)
    if isinstance(value, Tracer) or key or np.shape(value):
        return None
    # NumPy compares at once, where an operation of JAX would join the current trace.
    number = np.asarray(jax.device_get(value))
    if number == 0:
        return 0
    if np.iscomplexobj(number) or number != number:
        return None
    return 1 if number > 0 else -1


def _equation(
    eqn: JaxprEqn, inputs: list[AbstractValue], record: Record
) -> Sequence[AbstractValue]:
    flow = control_flow(eqn)
    if flow is not None:
        return _control_flow(eqn, flow, inputs, record)
    name = eqn.primitive.name
    if name in PRODUCTS:
        _record_uses(eqn, inputs[2:], record, "elementwise")
        return [record_product(eqn, inputs, record)]
    output = combine(inputs)
    if output.inputs:
        output = output._replace(selected=selected_weights(eqn, inputs))
    gathers = name == "gather" or (name == "dynamic_slice" and output.inputs)
    if gathers and inputs[0].views:
        _record_uses(eqn, inputs[:1], record, "gather")
        _record_uses(eqn, inputs[1:], record, "elementwise")
        return [output]
    if not any(value.views for value in inputs):
        if name in _KEEPS_ZERO and (inputs[0].zero or _keeps_sign(eqn)):
            output = output._replace(sign=inputs[0].sign)
        if len(eqn.outvars) == 1:
            return [one_hot_output(eqn, inputs, output)]
        return [output] * len(eqn.outvars)
    if output.inputs and not is_scaled_by_inputs(eqn, inputs):
        kind = "elementwise" if name in _ELEMENTWISE else "lost"
        _record_uses(eqn, inputs, record, kind)
        return [output] * len(eqn.outvars)
    output = output._replace(inputs=False, selected=())
    outputs = output_views(eqn, inputs)
    if name not in _CUTS:
        followed = {view.leaf for views in outputs for view in views}
        dropped = [_without(value, followed) for value in inputs]
        _record_uses(eqn, dropped, record, "elementwise")
    return [output._replace(views=tuple(views)) for views in outputs]


def _keeps_sign(eqn: JaxprEqn) -> bool:
    """Returns whether a constant keeps its sign; integers may overflow."""
    if eqn.primitive.name == "convert_element_type":
        return jnp.issubdtype(eqn.params["new_dtype"], jnp.floating)
    return eqn.primitive.name == "broadcast_in_dim"


def _without(value: AbstractValue, leaves: AbstractSet[str]) -> AbstractValue:
    """Returns the value without the views of these leaves."""
    views = tuple(view for view in value.views if view.leaf not in leaves)
    return value._replace(views=views)


def _record_uses(
    eqn: JaxprEqn, values: Sequence[AbstractValue], record: Record, kind: UseKind
) -> None:
    name, source = eqn.primitive.name, source_line(eqn)
    for view in dict.fromkeys(view for value in values for view in value.views):
        use = Use(name, kind, reason=view.lost, source=source)
        record.uses.append((view.leaf, use))


def _control_flow(
    eqn: JaxprEqn, flow: ControlFlow, inputs: list[AbstractValue], record: Record
) -> list[AbstractValue]:
    match flow:
        case Call(body):
            return analyse(body, inputs, record.inside(eqn))
        case Cond():
            return _cond(eqn, flow, inputs, record)
        case Scan():
            return _scan(eqn, flow, inputs, record)
        case While():
            return _while(eqn, flow, inputs, record)
        case ShardMap():
            return _shard_map(eqn, flow, inputs, record)


def _cond(
    eqn: JaxprEqn, cond: Cond, inputs: list[AbstractValue], record: Record
) -> list[AbstractValue]:
    results = [
        analyse(branch, inputs[1:], record.inside(eqn, i))
        for i, branch in enumerate(cond.branches)
    ]
    _record_uses(eqn, inputs[:1], record, "elementwise")
    outputs = []
    for values in zip(*results, strict=True):
        output = _depend(_either(values), inputs[0])
        if output.inputs:  # its views are not followed any further
            _record_uses(eqn, values, record, "elementwise")
        outputs.append(output)
    return outputs


def _scan(
    eqn: JaxprEqn, scan: Scan, inputs: list[AbstractValue], record: Record
) -> list[AbstractValue]:
    record = record.inside(eqn)
    first_carry, first_xs = scan.num_consts, scan.num_consts + scan.num_carry
    consts, carry = inputs[:first_carry], inputs[first_carry:first_xs]
    scan_step = lambda view: view.scan_step(scan.length, record.path)
    xs = [shift_axes(value.map_views(scan_step), -1) for value in inputs[first_xs:]]

    def step(carry: list[AbstractValue], record: Record) -> list[AbstractValue]:
        return analyse(scan.body, [*consts, *carry, *xs], record)

    outputs = _fixed_point(step, carry, record)
    carry, stacked = outputs[: scan.num_carry], outputs[scan.num_carry :]
    return [*carry, *(shift_axes(_lose(value, "scan"), 1) for value in stacked)]


def _while(
    eqn: JaxprEqn, loop: While, inputs: list[AbstractValue], record: Record
) -> list[AbstractValue]:
    first_body, first_carry = loop.num_condition, loop.num_condition + loop.num_body
    body_consts, carry = inputs[first_body:first_carry], inputs[first_carry:]

    def step(carry: list[AbstractValue], record: Record) -> list[AbstractValue]:
        return analyse(loop.body, [*body_consts, *carry], record)

    outputs = _fixed_point(step, carry, record.inside(eqn, body_part(loop.condition)))
    args = [*inputs[:first_body], *outputs]
    (go_on,) = analyse(loop.condition, args, record.inside(eqn, 1))
    _record_uses(eqn, [go_on], record, "elementwise")
    return [_depend(value, go_on) for value in outputs]


def _shard_map(
    eqn: JaxprEqn, shard_map: ShardMap, inputs: list[AbstractValue], record: Record
) -> list[AbstractValue]:
    shards = [
        _shard(value, var_shape(var), spec, shard_map.mesh)
        for value, var, spec in zip(inputs, eqn.invars, shard_map.in_specs, strict=True)
    ]
    outputs = analyse(shard_map.body, shards, record.inside(eqn))
    return [_lose(value, "shard_map") for value in outputs]


def _fixed_point(
    step: Callable[[list[AbstractValue], Record], list[AbstractValue]],
    carry: list[AbstractValue],
    record: Record,
) -> list[AbstractValue]:
    """Analyses a loop's body until its carries no longer change; then records uses."""
    while True:
        trial = new_record()._replace(path=record.path)
        outputs = step(carry, trial)[: len(carry)]
        after = [_either(pair) for pair in zip(carry, outputs, strict=True)]
        if after == carry:
            outputs = step(carry, record)
            return [*carry, *outputs[len(carry) :]]
        carry = after


def _either(values: Sequence[AbstractValue]) -> AbstractValue:
    """Returns what is known about a value that is one of these."""
    output = combine(values)
    if output.inputs:
        return output
    if views := union(values):
        return output._replace(views=tuple(views))
    views = tuple(dict.fromkeys(view for value in values for view in value.views))
    if any(set(value.views) != set(views) for value in values):
        views = tuple(replace(view, unclear="it is one of several") for view in views)
    return output._replace(views=views)


def _depend(value: AbstractValue, choice: AbstractValue) -> AbstractValue:
    """Returns the value if it is chosen by another value, such as a branch index."""
    return combine([value, choice]) if choice.inputs else value


def _lose(value: AbstractValue, primitive: str) -> AbstractValue:
    return value.map_views(lambda view: view.lose(primitive))


def _shard(
    value: AbstractValue, shape: Sequence[int], spec: Any, mesh: Any
) -> AbstractValue:
    counts = [1] * len(shape)
    for i, names in enumerate(spec):
        for name in (names,) if isinstance(names, str) else names or ():
            counts[i] *= mesh.shape[name]
    return value.map_views(lambda view: view.shard(counts, shape))
