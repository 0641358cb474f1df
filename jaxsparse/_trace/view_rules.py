"""How operations on parameters and constants alone move views to their outputs."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jax.extend.core import JaxprEqn

from jaxsparse._trace.combination_rules import COMBINE, lose_all
from jaxsparse._trace.jaxpr import var_shape
from jaxsparse._trace.record import AbstractValue
from jaxsparse._trace.view import View


#: Elementwise operations on one operand that map zero to zero.
KEEPS_ZEROS = frozenset(
    [
        "abs",
        "asin",
        "asinh",
        "atan",
        "cbrt",
        "ceil",
        "conj",
        "convert_element_type",
        "copy",
        "copy_p",
        "device_put",
        "erf",
        "expm1",
        "floor",
        "log1p",
        "mesh_cast",
        "name",
        "neg",
        "optimization_barrier",
        "pbroadcast",
        "pcast",
        "pvary",
        "real",
        "reduce_precision",
        "reshard",
        "round",
        "sharding_constraint",
        "sign",
        "sin",
        "sinh",
        "sqrt",
        "square",
        "stop_gradient",
        "tan",
        "tanh",
    ]
)


#: Those that neither move and scale weights nor round them.
BENDS = frozenset(
    [
        "abs",
        "asin",
        "asinh",
        "atan",
        "cbrt",
        "erf",
        "expm1",
        "log1p",
        "sign",
        "sin",
        "sinh",
        "sqrt",
        "square",
        "tan",
        "tanh",
    ]
)


def output_views(
    eqn: JaxprEqn, inputs: Sequence[AbstractValue]
) -> Sequence[Sequence[View]]:
    """Returns the views of each output, for inputs made of parameters and constants."""
    name = eqn.primitive.name
    if name in BENDS:
        return [[view.bend(name) for view in inputs[0].views]]
    if name in KEEPS_ZEROS:
        return [value.views for value in inputs]
    if name in COMBINE:
        return [COMBINE[name](eqn, inputs)]
    if name in _MOVES:
        shape = var_shape(eqn.invars[0])
        return [inputs[0].map_views(lambda v: _MOVES[name](v, eqn, shape)).views]
    return _RULES.get(name, _lose_all)(eqn, inputs)


def _ints(numbers: Iterable[Any]) -> list[int]:
    """Python's integers: JAX keeps some parameters as NumPy's."""
    return [int(number) for number in numbers]


def _broadcast(view: View, eqn: JaxprEqn, shape: Sequence[int]) -> View:
    axes = _ints(eqn.params["broadcast_dimensions"])
    return view.broadcast(shape, eqn.params["shape"], axes)


def _dynamic_slice(view: View, eqn: JaxprEqn, shape: Sequence[int]) -> View:
    return view.dynamic_slice(shape, _ints(eqn.params["slice_sizes"]))


def _pad(view: View, eqn: JaxprEqn, _: Sequence[int]) -> View:
    for axis, (low, high, interior) in enumerate(eqn.params["padding_config"]):
        if interior or low < 0 or high < 0:
            view = view.reorder([axis], "pad")
        view = view.shift(axis, int(low))
    return view


def _reshape(view: View, eqn: JaxprEqn, shape: Sequence[int]) -> View:
    order = eqn.params["dimensions"]
    if order is not None:  # the elements are read in an order other than row-major
        view = view.transpose(_ints(order))
        shape = [shape[i] for i in order]
    return view.reshape(shape, _ints(eqn.params["new_sizes"]))


def _reverse(view: View, eqn: JaxprEqn, shape: Sequence[int]) -> View:
    return view.reverse(_ints(eqn.params["dimensions"]), shape)


def _slice(view: View, eqn: JaxprEqn, shape: Sequence[int]) -> View | None:
    starts = _ints(eqn.params["start_indices"])
    limits = _ints(eqn.params["limit_indices"])
    return view.slice(
        shape, starts, limits, _ints(eqn.params["strides"] or [1] * len(shape))
    )


def _squeeze(view: View, eqn: JaxprEqn, _: Sequence[int]) -> View:
    return view.squeeze(_ints(eqn.params["dimensions"]))


def _transpose(view: View, eqn: JaxprEqn, _: Sequence[int]) -> View:
    return view.transpose(_ints(eqn.params["permutation"]))


#: `(view, equation, shape of the operand) -> view` of operations that move elements.
_MOVES: dict[str, Callable[[View, JaxprEqn, Sequence[int]], View | None]] = {
    "broadcast_in_dim": _broadcast,
    "dynamic_slice": _dynamic_slice,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _reverse,
    "slice": _slice,
    "squeeze": _squeeze,
    "transpose": _transpose,
}


def _concatenate(eqn: JaxprEqn, inputs: Sequence[AbstractValue]) -> list[list[View]]:
    axis, start = int(eqn.params["dimension"]), 0
    views: list[View] = []
    for value, var in zip(inputs, eqn.invars, strict=True):
        views += value.map_views(lambda v, start=start: v.shift(axis, start)).views
        start += var_shape(var)[axis]
    return [views]


def _integer_pow(
    eqn: JaxprEqn, inputs: Sequence[AbstractValue]
) -> Sequence[Sequence[View]]:
    if eqn.params["y"] <= 0:
        return _lose_all(eqn, inputs)
    return [[view.bend("integer_pow") for view in inputs[0].views]]


def _split(eqn: JaxprEqn, inputs: Sequence[AbstractValue]) -> Sequence[Sequence[View]]:
    axis, shape = int(eqn.params["axis"]), var_shape(eqn.invars[0])
    ones, outputs, start = [1] * len(shape), [], 0
    for size in _ints(eqn.params["sizes"]):
        starts = [start if i == axis else 0 for i in range(len(shape))]
        limits = [start + size if i == axis else n for i, n in enumerate(shape)]
        part = lambda v, starts=starts, limits=limits: v.slice(
            shape, starts, limits, ones
        )
        outputs.append(inputs[0].map_views(part).views)
        start += size
    return outputs


def _lose_all(eqn: JaxprEqn, inputs: Sequence[AbstractValue]) -> list[list[View]]:
    return [lose_all(eqn, inputs)] * len(eqn.outvars)


#: `(equation, inputs) -> views of each output` of all other operations.
_RULES: dict[
    str, Callable[[JaxprEqn, Sequence[AbstractValue]], Sequence[Sequence[View]]]
] = {
    "concatenate": _concatenate,
    "integer_pow": _integer_pow,
    "split": _split,
}
