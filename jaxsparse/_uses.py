"""How a computation uses its parameters, read from its jaxpr without running it.

Every value carries what it shows of each parameter (`View`). A value that depends on
the inputs shows none: an activation that a bias was added to is not the bias. Where a
view meets a product, a look-up or an operation that is not understood, that is a use.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jax.extend import source_info_util

from jaxsparse import _views as views
from jaxsparse._interpreter import (
    Call,
    Cond,
    Inner,
    Scan,
    ShardMap,
    While,
    interpret,
    structure,
)
from jaxsparse._views import View


class Value(NamedTuple):
    """What is known of a value.

    Attributes:
      views: what it shows of parameters, if it is made of nothing else.
      inputs: whether it depends on the inputs.
      params: whether it depends on parameters.
      zero: whether it is a constant of zeros.
      frontier: the products with parameters that reach it through no further one.
    """

    views: tuple[View, ...] = ()
    inputs: bool = False
    params: bool = False
    zero: bool = False
    frontier: frozenset[frozenset[str]] = frozenset()


@dataclass(frozen=True)
class Use:
    """One place where a computation uses a leaf.

    Attributes:
      primitive: the operation.
      kind: "contraction", "gather", "elementwise", or "lost" for an operation that is
        not understood.
      contracted: the leaf's axes that are summed over (a convolution: input channels).
      batch: the leaf's axes along which there are separate products.
      output: the leaf's axes that become axes of the result.
      group: the axis along which groups lie, or None.
      alignment: what `m` has to divide so that groups fit the product; 0 for anything.
      groups: the feature groups of a convolution.
      other: the shape of the other operand.
      merged: whether the leaf was summed with other parameters before.
      reason: why there is no group axis.
      node: the leaves that this product multiplies by.
      source: the line of the program, as far as JAX knows it.
    """

    primitive: str
    kind: str
    contracted: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()
    output: tuple[int, ...] = ()
    group: int | None = None
    alignment: int = 0
    groups: int = 1
    other: tuple[int, ...] | None = None
    merged: bool = False
    reason: str = ""
    node: frozenset[str] = frozenset()
    source: str = ""


class Record(NamedTuple):
    """What a walk writes down.

    Attributes:
      uses: pairs of a leaf and a use of it.
      before: products that others precede.
      after: products that others follow.
    """

    uses: list[tuple[str, Use]]
    before: set[frozenset[str]]
    after: set[frozenset[str]]


_ELEMENTWISE = frozenset(
    "add add_any and atan2 clamp concatenate div eq ge gt le lt max min mul ne "
    "nextafter or pow rem select_n sub xor".split()
)
_KEEPS_ZEROS = frozenset(
    "abs asin asinh atan cbrt ceil conj convert_element_type copy copy_p device_put "
    "erf expm1 floor log1p mesh_cast name neg optimization_barrier pbroadcast pcast "
    "pvary real reduce_precision reshard round sharding_constraint sign sin sinh "
    "sqrt square stop_gradient tan tanh".split()
)
_MOVES = frozenset(
    "broadcast_in_dim dynamic_slice pad reshape rev slice squeeze transpose".split()
)
_GATHERS = frozenset({"gather"})


def walk(inner: Inner, args: Sequence[Value], record: Record) -> list[Value]:
    """Walks through a jaxpr, writing down what parameters are used for."""
    return interpret(inner, args, partial(_equation, record=record), _constant)


def _constant(value: Any) -> Value:
    small = np.ndim(value) == 0 and not hasattr(value, "aval")
    return Value(zero=bool(small and value == 0))


def _equation(eqn, inputs: list[Value], record: Record) -> Sequence[Value]:
    inside = structure(eqn)
    if inside is not None:
        return _control_flow(eqn, inside, inputs, record)
    name = eqn.primitive.name
    if name in _PRODUCTS:
        return [_product(eqn, inputs, record)]
    if name in _GATHERS and inputs[0].views:
        _note(eqn, inputs[:1], record, "gather")
        return [_blend(inputs)]
    if not any(value.views for value in inputs):
        zero = name in _KEEPS_ZEROS | _MOVES and inputs[0].zero
        return [_blend(inputs)._replace(zero=zero)] * len(eqn.outvars)
    if any(value.inputs for value in inputs):
        kind = "elementwise" if name in _ELEMENTWISE else "lost"
        _note(eqn, inputs, record, kind)
        return [_blend(inputs)] * len(eqn.outvars)
    if name in _KEEPS_ZEROS:
        return inputs
    shown = _SHOWN.get(name, _unknown)(eqn, inputs)
    return [_blend(inputs)._replace(views=tuple(v)) for v in shown]


def _blend(values: Sequence[Value]) -> Value:
    """What depends on all of these, without any view."""
    return Value(
        inputs=any(value.inputs for value in values),
        params=any(value.params for value in values),
        frontier=frozenset().union(*(value.frontier for value in values)),
    )


def _note(eqn, values: Sequence[Value], record: Record, kind: str) -> None:
    for value in values:
        for view in value.views:
            use = Use(eqn.primitive.name, kind, reason=view.lost, source=_source(eqn))
            record.uses.append((view.leaf, use))


# What the outputs show of the parameters, for values made of parameters alone.


def _moved(move: Callable[..., View | None]):
    """A rule for an operation on one operand that moves its elements."""

    def shown(eqn, inputs):
        shape = eqn.invars[0].aval.shape
        moved = [v if v.lost else move(v, eqn, shape) for v in inputs[0].views]
        return [[view for view in moved if view is not None]]

    return shown


def _padded(view: View, eqn, shape) -> View:
    for axis, (low, high, interior) in enumerate(eqn.params["padding_config"]):
        if interior or low < 0 or high < 0:
            view = views.mix(view, [axis], "pad")
        view = views.shift(view, axis, low)
    del shape
    return view


def _split(eqn, inputs):
    axis, shape = eqn.params["axis"], eqn.invars[0].aval.shape
    shown, start = [], 0
    for size in map(int, eqn.params["sizes"]):
        starts = [start if i == axis else 0 for i in range(len(shape))]
        limits = [start + size if i == axis else n for i, n in enumerate(shape)]
        cut = [
            v if v.lost else views.cut(v, shape, starts, limits, [1] * len(shape))
            for v in inputs[0].views
        ]
        shown.append([view for view in cut if view is not None])
        start += size
    return shown


def _concatenated(eqn, inputs):
    axis, start, shown = eqn.params["dimension"], 0, []
    for value, var in zip(inputs, eqn.invars, strict=True):
        shown += [v if v.lost else views.shift(v, axis, start) for v in value.views]
        start += var.aval.shape[axis]
    return [shown]


def _multiplied(eqn, inputs):
    """Zeros of either factor stay zeros; a mere scale is not what is contracted."""
    del eqn
    proper = lambda view: not view.broadcast and not view.lost
    if any(proper(view) for value in inputs for view in value.views):
        return [[view for value in inputs for view in value.views if proper(view)]]
    return [[view for value in inputs for view in value.views]]


def _divided(eqn, inputs):
    kept = list(inputs[0].views)
    return [kept] if kept else _unknown(eqn, inputs[1:])


def _summed(eqn, inputs):
    """A sum has its zeros only once its terms were merged and pruned together."""
    del eqn
    if any(value.zero for value in inputs):
        return [[view for value in inputs for view in value.views]]
    return [[_merged(view) for value in inputs for view in value.views]]


def _merged(view: View) -> View:
    return View(view.leaf, view.dims, view.batch, merged=True, lost=view.lost)


def _selected(eqn, inputs):
    """`where(mask, w, 0)` keeps zeros; of other choices nothing is known."""
    cases = inputs[1:]
    if all(case.views or case.zero for case in cases):
        return [[view for case in cases for view in case.views]]
    return _unknown(eqn, inputs)


def _limited(eqn, inputs):
    """`max(w, 0)` keeps zeros."""
    if any(value.zero for value in inputs):
        return [[view for value in inputs for view in value.views]]
    return _unknown(eqn, inputs)


def _powered(eqn, inputs):
    return [list(inputs[0].views)] if eqn.params["y"] > 0 else _unknown(eqn, inputs)


def _unknown(eqn, inputs):
    lost = [views.losing(v, eqn.primitive.name) for x in inputs for v in x.views]
    return [lost] * len(eqn.outvars)


_SHOWN: dict[str, Callable] = {
    "add": _summed,
    "add_any": _summed,
    "broadcast_in_dim": _moved(
        lambda view, eqn, shape: views.broadcast(
            view, shape, eqn.params["shape"], eqn.params["broadcast_dimensions"]
        )
    ),
    "concatenate": _concatenated,
    "div": _divided,
    "dynamic_slice": _moved(
        lambda view, eqn, shape: views.cut_somewhere(
            view, shape, eqn.params["slice_sizes"]
        )
    ),
    "integer_pow": _powered,
    "max": _limited,
    "min": _limited,
    "mul": _multiplied,
    "pad": _moved(_padded),
    "reshape": _moved(
        lambda view, eqn, shape: views.reshape(view, shape, eqn.params["new_sizes"])
    ),
    "rev": _moved(
        lambda view, eqn, _: views.mix(view, eqn.params["dimensions"], "rev")
    ),
    "select_n": _selected,
    "slice": _moved(
        lambda view, eqn, shape: views.cut(
            view,
            shape,
            eqn.params["start_indices"],
            eqn.params["limit_indices"],
            eqn.params["strides"] or [1] * len(shape),
        )
    ),
    "split": _split,
    "squeeze": _moved(
        lambda view, eqn, _: views.squeeze(view, eqn.params["dimensions"])
    ),
    "sub": _summed,
    "transpose": _moved(
        lambda view, eqn, _: views.transpose(view, eqn.params["permutation"])
    ),
}


# Products: where a parameter is contracted.


class _Side(NamedTuple):
    """What a product does with the axes of one of its operands."""

    contracted: tuple[int, ...]
    batch: tuple[int, ...]
    spatial: tuple[int, ...] = ()


def _dot_sides(eqn) -> list[_Side | None]:
    contracted, batch = eqn.params["dimension_numbers"]
    return [_Side(contracted[i], batch[i]) for i in (0, 1)]


def _ragged_sides(eqn) -> list[_Side | None]:
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    contracted, batch = numbers.dot_dimension_numbers
    return [
        _Side(contracted[0], batch[0]),
        _Side(contracted[1], (*batch[1], *numbers.rhs_group_dimensions)),
    ]


def _conv_sides(eqn) -> list[_Side | None]:
    _, inputs, *spatial = eqn.params["dimension_numbers"].rhs_spec
    return [None, _Side((inputs,), (), tuple(spatial))]


_PRODUCTS: dict[str, Callable[[Any], list[_Side | None]]] = {
    "conv_general_dilated": _conv_sides,
    "dot_general": _dot_sides,
    "ragged_dot": _ragged_sides,
    "ragged_dot_general": _ragged_sides,
}


def _product(eqn, inputs: list[Value], record: Record) -> Value:
    operands = inputs[:2]
    result = _blend(inputs)
    if not any(value.views for value in operands):
        return result
    known = [v for value in operands for v in value.views if not v.lost]
    node = frozenset(view.leaf for view in known)
    others = result.frontier - {node}
    record.after.update(others)
    if others:
        record.before.add(node)
    for i, side in enumerate(_PRODUCTS[eqn.primitive.name](eqn)):
        other = tuple(eqn.invars[1 - i].aval.shape)
        for view in operands[i].views:
            use = _contraction(eqn, view, side, other, node)
            record.uses.append((view.leaf, use))
    # A constant is as good as an input: only parameters alone make a parameter.
    alone = all(value.params and not value.inputs for value in operands)
    return Value(inputs=not alone, params=True, frontier=frozenset({node}))


def _contraction(
    eqn,
    view: View,
    side: _Side | None,
    other: tuple[int, ...],
    node: frozenset[str],
) -> Use:
    lost = partial(Use, eqn.primitive.name, "lost", source=_source(eqn))
    if view.lost:
        return lost(reason=view.lost)
    if side is None:
        return lost(reason=eqn.primitive.name)
    of = lambda places: {axis for i in places for axis in view.dims[i].axes}
    contracted = of(side.contracted)
    batch = (of(side.batch) | view.batch) - contracted
    rest = set(range(len(view.dims))) - {
        *side.contracted,
        *side.batch,
        *side.spatial,
    }
    group, alignment, reason = _group([view.dims[i] for i in side.contracted])
    if side.spatial and eqn.invars[1].aval.shape[side.contracted[0]] == 1:
        group, reason = None, "depthwise, or one input channel"
    return Use(
        eqn.primitive.name,
        "contraction",
        contracted=tuple(sorted(contracted)),
        batch=tuple(sorted(batch)),
        output=tuple(sorted(of(rest) - contracted - batch)),
        group=group,
        alignment=alignment,
        groups=eqn.params.get("feature_group_count", 1),
        other=other,
        merged=view.merged,
        reason=reason,
        node=node,
        source=_source(eqn),
    )


def _group(dims: Sequence[views.Dim]) -> tuple[int | None, int, str]:
    """The group axis of a product over these axes, its alignment, or why there is none.

    Of axes contracted separately the last one of the leaf; of axes merged into one the
    innermost, which has to be there in whole runs.
    """
    summed = [factor for dim in dims for factor in dim.factors]
    found: dict[int, int] = {}
    for dim in dims:
        if dim.opaque and dim.axes:
            return None, 0, f"mixed axes ({dim.opaque})"
        if not dim.axes:
            continue
        inner = dim.factors[-1]
        if inner.axis < 0 or inner.stride != 1:
            continue
        # Blocks that are summed over as well make up the whole axis again.
        rejoined = any(
            f.axis == inner.axis and f.stride == inner.size for f in summed
        )
        unit = 0 if rejoined else inner.unit
        alignment = np.gcd(unit, inner.start - dim.place)
        if len(dim.factors) > 1:
            alignment = np.gcd(alignment, inner.size)
        found[inner.axis] = int(alignment)
    if found:
        return max(found), found[max(found)], ""
    axes = {factor.axis for factor in summed if factor.axis >= 0}
    return None, 0, "mixed axes" if axes else "only elementwise"


# Control flow.


def _control_flow(eqn, inside, inputs: list[Value], record: Record) -> list[Value]:
    match inside:
        case Call(body):
            return walk(body, inputs, record)
        case Cond(branches):
            results = [walk(branch, inputs[1:], record) for branch in branches]
            joined = [_join(values) for values in zip(*results, strict=True)]
            return [_depend(value, inputs[0]) for value in joined]
        case Scan(body, num_consts, num_carry):
            consts = inputs[:num_consts]
            carry = inputs[num_consts : num_consts + num_carry]
            xs = [_each(value) for value in inputs[num_consts + num_carry :]]
            run = lambda carry, record: walk(body, [*consts, *carry, *xs], record)
            outputs = _settle(run, carry, record)
            return [*outputs[:num_carry], *map(_stacked, outputs[num_carry:])]
        case While(condition, body, num_condition, num_body):
            carry = inputs[num_condition + num_body :]
            consts = inputs[num_condition : num_condition + num_body]
            run = lambda carry, record: walk(body, [*consts, *carry], record)
            outputs = _settle(run, carry, record)
            stop = walk(condition, [*inputs[:num_condition], *outputs], record)
            return [_depend(value, stop[0]) for value in outputs]
        case ShardMap(body, mesh, in_specs):
            shards = [
                _shard(value, var.aval.shape, spec, mesh)
                for value, var, spec in zip(inputs, eqn.invars, in_specs, strict=True)
            ]
            return [_gone(value, "shard_map") for value in walk(body, shards, record)]
    raise AssertionError(inside)


def _settle(run, carry: list[Value], record: Record) -> list[Value]:
    """Runs a loop's body until what its carries show no longer changes."""
    while True:
        trial = Record([], set(), set())
        outputs = run(carry, trial)[: len(carry)]
        after = [_join(pair) for pair in zip(carry, outputs, strict=True)]
        if after == carry:
            outputs = run(carry, record)
            return [*carry, *outputs[len(carry) :]]
        carry = after


def _join(values: Sequence[Value]) -> Value:
    """What holds for a value that is one of these."""
    blend = _blend(values)
    shown = tuple(dict.fromkeys(view for value in values for view in value.views))
    return blend if blend.inputs else blend._replace(views=shown)


def _depend(value: Value, on: Value) -> Value:
    """The value, where the choice of it depends on another."""
    if not on.inputs:
        return value
    return _blend([value, on])


def _each(value: Value) -> Value:
    """One step's part of a stacked input."""
    shown = [v if v.lost else views.squeeze(v, [0]) for v in value.views]
    return value._replace(views=tuple(shown))


def _stacked(value: Value) -> Value:
    return _gone(value, "scan")


def _gone(value: Value, why: str) -> Value:
    """A value whose views are not followed any further."""
    return value._replace(views=tuple(views.losing(v, why) for v in value.views))


def _shard(value: Value, shape: Sequence[int], spec, mesh) -> Value:
    counts = [1] * len(shape)
    for i, names in enumerate(spec):
        for name in (names,) if isinstance(names, str) else names or ():
            counts[i] *= mesh.shape[name]
    shown = [v if v.lost else views.shard(v, counts, shape) for v in value.views]
    return value._replace(views=tuple(shown))


def _source(eqn) -> str:
    return source_info_util.summarize(eqn.source_info)
