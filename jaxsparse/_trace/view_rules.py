"""What the outputs of an operation show of parameters, where it has no other inputs."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from jaxsparse._trace import view as views
from jaxsparse._trace.record import AbstractValue
from jaxsparse._trace.view import View


#: Operations on one operand, element by element, that take zero to zero.
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


def output_views(eqn, inputs: Sequence[AbstractValue]) -> Sequence[Sequence[View]]:
    """The views of each output, for inputs made of parameters and constants alone."""
    if eqn.primitive.name in KEEPS_ZEROS:
        return [value.views for value in inputs]
    if eqn.primitive.name in _COMBINE:
        return [_COMBINE[eqn.primitive.name](eqn, _spread(eqn, inputs))]
    return _RULES.get(eqn.primitive.name, _unknown)(eqn, inputs)


def _ints(numbers) -> list[int]:
    """JAX keeps some of them as NumPy's."""
    return [int(number) for number in numbers]


def _moved(move: Callable[..., View | None]):
    """A rule for an operation on one operand that moves its elements."""

    def rule(eqn, inputs):
        shape = eqn.invars[0].aval.shape
        moved = [v if v.lost else move(v, eqn, shape) for v in inputs[0].views]
        return [[view for view in moved if view is not None]]

    return rule


def _reshaped(view: View, eqn, shape) -> View:
    order = eqn.params["dimensions"]
    if order is not None:  # the elements are taken in another order than row-major
        view = views.transpose(view, _ints(order))
        shape = [shape[i] for i in order]
    return views.reshape(view, shape, _ints(eqn.params["new_sizes"]))


def _padded(view: View, eqn, _) -> View:
    for axis, (low, high, interior) in enumerate(eqn.params["padding_config"]):
        if interior or low < 0 or high < 0:
            view = views.reorder(view, [axis], "pad")
        view = views.shift(view, axis, int(low))
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


def _spread(eqn, inputs: Sequence[AbstractValue]) -> list[AbstractValue]:
    """The operands in the shape of the result: axes of one place are repeated."""
    new = eqn.outvars[0].aval.shape
    spread = []
    for value, var in zip(inputs, eqn.invars, strict=True):
        old = var.aval.shape
        axes = range(len(old))
        parts = [
            v if v.lost else views.broadcast(v, old, new, axes) for v in value.views
        ]
        spread.append(value._replace(views=tuple(parts)))
    return spread


def _multiplied(_, inputs):
    """Zeros of either factor stay zeros; a mere scale is not what is contracted."""
    proper = lambda view: not view.broadcast and not view.lost
    everything = _all(inputs)
    return [view for view in everything if proper(view)] or everything


def _divided(eqn, inputs):
    return inputs[0].views or _lose(eqn, inputs)


def _summed(_, inputs):
    """A sum has its zeros only once its terms were merged and pruned together."""
    if any(value.zero for value in inputs):
        return _all(inputs)
    return [replace(view, merged=True) for view in _all(inputs)]


def _selected(eqn, inputs):
    """`where(mask, w, 0)` keeps zeros; of other choices nothing is known."""
    cases = inputs[1:]
    if not all(case.views or case.zero for case in cases):
        return _lose(eqn, inputs)
    if sum(bool(case.views) for case in cases) == 1:
        return _all(cases)
    return [replace(view, unclear="it is one of several") for view in _all(cases)]


def _limited(eqn, inputs):
    """`max(w, 0)` keeps zeros."""
    kept = any(value.zero for value in inputs)
    return _all(inputs) if kept else _lose(eqn, inputs)


def _all(values: Sequence[AbstractValue]) -> list[View]:
    return [view for value in values for view in value.views]


def _lose(eqn, inputs) -> list[View]:
    return [views.lost(view, eqn.primitive.name) for view in _all(inputs)]


_COMBINE: dict[str, Callable[..., Sequence[View]]] = {
    "add": _summed,
    "add_any": _summed,
    "div": _divided,
    "max": _limited,
    "min": _limited,
    "mul": _multiplied,
    "select_n": _selected,
    "sub": _summed,
}


def _powered(eqn, inputs):
    return [list(inputs[0].views)] if eqn.params["y"] > 0 else _unknown(eqn, inputs)


def _unknown(eqn, inputs):
    return [_lose(eqn, inputs)] * len(eqn.outvars)


_RULES: dict[str, Callable[..., Sequence[Sequence[View]]]] = {
    "broadcast_in_dim": _moved(
        lambda view, eqn, shape: views.broadcast(
            view,
            shape,
            eqn.params["shape"],
            _ints(eqn.params["broadcast_dimensions"]),
        )
    ),
    "concatenate": _concatenated,
    "dynamic_slice": _moved(
        lambda view, eqn, shape: views.dynamic_slice(
            view, shape, _ints(eqn.params["slice_sizes"])
        )
    ),
    "integer_pow": _powered,
    "pad": _moved(_padded),
    "reshape": _moved(_reshaped),
    "rev": _moved(
        lambda view, eqn, _: views.reorder(view, _ints(eqn.params["dimensions"]), "rev")
    ),
    "slice": _moved(
        lambda view, eqn, shape: views.cut(
            view,
            shape,
            _ints(eqn.params["start_indices"]),
            _ints(eqn.params["limit_indices"]),
            _ints(eqn.params["strides"] or [1] * len(shape)),
        )
    ),
    "split": _split,
    "squeeze": _moved(
        lambda view, eqn, _: views.squeeze(view, _ints(eqn.params["dimensions"]))
    ),
    "transpose": _moved(
        lambda view, eqn, _: views.transpose(view, _ints(eqn.params["permutation"]))
    ),
}
