"""How elementwise operations on several operands combine their views.

A view promises that a value is zero wherever its leaf is. A product keeps the promises
of each factor. A sum keeps none of them, unless all terms make the same ones.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from jax.extend.core import JaxprEqn

from jaxsparse._trace.jaxpr import var_shape
from jaxsparse._trace.record import AbstractValue
from jaxsparse._trace.view import View


#: Operations whose results change with a weight in steps, or are few numbers computed
#: from many weights. As factors of a weight they are held fixed.
_STATISTICS = frozenset(
    [
        *("eq", "ge", "gt", "is_finite", "le", "lt", "ne"),
        *("argmax", "argmin", "reduce_and", "reduce_max", "reduce_min", "reduce_or"),
        *("reduce_prod", "reduce_sum"),
    ]
)


def _broadcast_inputs(
    eqn: JaxprEqn, inputs: Sequence[AbstractValue]
) -> list[AbstractValue]:
    """Returns the operands in the shape of the result."""
    new = var_shape(eqn.outvars[0])
    expanded = []
    for value, var in zip(inputs, eqn.invars, strict=True):
        old = var_shape(var)
        expand = lambda view, old=old: view.broadcast(old, new, range(len(old)))
        expanded.append(value.map_views(expand))
    return expanded


def _multiply(eqn: JaxprEqn, inputs: Sequence[AbstractValue]) -> Sequence[View]:
    """Zeros of either factor stay zeros; a scale is not what a product contracts."""
    left, right = _broadcast_inputs(eqn, inputs)
    left_rank, right_rank = _weight_rank(left), _weight_rank(right)
    weights = left.views if left_rank >= right_rank else ()
    others = right.views if right_rank >= left_rank else ()
    return [
        *_scale(weights, right, eqn.primitive.name),
        *_scale(others, left, eqn.primitive.name),
    ]


def _divide(eqn: JaxprEqn, inputs: Sequence[AbstractValue]) -> Sequence[View]:
    weight, scale = _broadcast_inputs(eqn, inputs)
    return _scale(weight.views, scale, eqn.primitive.name) or lose_all(eqn, inputs)


def _weight_rank(value: AbstractValue) -> float:
    """Returns how much of parameters a factor shows: infinity if all its elements."""
    views = [view for view in value.views if not view.lost]
    if any(not view.is_broadcast for view in views):
        return math.inf
    covered = lambda view: math.prod(
        piece.size for axis in view.axes for piece in axis.pieces if piece.axis >= 0
    )
    return float(max(map(covered, views), default=0))


def _scale(views: Sequence[View], factor: AbstractValue, name: str) -> list[View]:
    """Returns the views of a value after a product with a factor."""
    bending = {view.leaf for view in factor.views if view.lost not in _STATISTICS}
    return [
        view.bend(name)
        if view.leaf in bending
        else replace(view, scaled=True, varies=view.varies or factor.inputs)
        for view in views
    ]


def _add(eqn: JaxprEqn, inputs: Sequence[AbstractValue]) -> Sequence[View]:
    """A sum is sparse if its terms have the same zeros; else once they are merged."""
    terms = [value for value in _broadcast_inputs(eqn, inputs) if not value.zero]
    if len(terms) < 2:
        return _all(terms)
    if not all(term.params for term in terms):
        return [view.lose("a sum with a constant") for view in _all(terms)]
    if views := union(terms):
        return [replace(view, scaled=True) for view in views]
    if any(view.varies for view in _all(terms)):  # they cannot be merged
        return [view.lose("a sum scaled by the inputs") for view in _all(terms)]
    return [
        view.lose(_self_sum(view.leaf, terms))
        if all(view.leaf in _leaves(term) for term in terms)
        else replace(view, merged=True)
        for view in _all(terms)
    ]


def _self_sum(leaf: str, terms: Sequence[AbstractValue]) -> str:
    """Returns the operation that makes a sum of several forms of a leaf dense."""
    lost = (view.lost for view in _all(terms) if view.leaf == leaf)
    return _first(lost) or "a sum with itself"


def _leaves(value: AbstractValue) -> set[str]:
    return {view.leaf for view in value.views}


def union(values: Sequence[AbstractValue]) -> list[View]:
    """Returns the views of a sum, a mixture or a choice of values with equal zeros.

    The result is empty if their zeros may differ.
    """
    views = _all(values)
    positions = [{view.positions for view in value.views} for value in values]
    if any(view.lost for view in views) or any(p != positions[0] for p in positions):
        return []
    return [
        _merge_flags([view for view in views if view.positions == position])
        for position in dict.fromkeys(view.positions for view in views)
    ]


def _merge_flags(views: Sequence[View]) -> View:
    """Returns one view for several that show the same positions."""
    return replace(
        views[0],
        scaled=any(view.scaled for view in views) or len(set(views)) > 1,
        varies=any(view.varies for view in views),
        bent=_first(view.bent for view in views),
        unclear=_first(view.unclear for view in views),
    )


def _select(eqn: JaxprEqn, inputs: Sequence[AbstractValue]) -> Sequence[View]:
    """`where(mask, w, 0)` keeps zeros; nothing is known about other choices."""
    which, *cases = inputs
    if not all(case.views or case.zero for case in cases):
        return lose_all(eqn, inputs)
    chosen = [case for case in cases if case.views]
    views = [replace(view, scaled=True) for view in _all(cases)]
    if len(chosen) > 1:
        views = [replace(view, unclear="it is one of several") for view in views]
        # A choice between whole values is one of them; of elements, it is a mixture.
        if var_shape(eqn.invars[0]) and not union(chosen):
            views = [replace(view, merged=True) for view in views]
    bending = {view.leaf for view in which.views if view.lost not in _STATISTICS}
    return [view.bend("select_n") if view.leaf in bending else view for view in views]


def _max_or_min(eqn: JaxprEqn, inputs: Sequence[AbstractValue]) -> Sequence[View]:
    """`max(w, -1)` and `min(w, 1)` keep zeros, and so do both with 0."""
    kept = (-1, 0) if eqn.primitive.name == "max" else (0, 1)
    if not any(value.sign in kept for value in inputs):
        return lose_all(eqn, inputs)
    views = _all(_broadcast_inputs(eqn, inputs))
    return [view.bend(eqn.primitive.name) for view in views]


def _clamp(eqn: JaxprEqn, inputs: Sequence[AbstractValue]) -> Sequence[View]:
    """`clamp(-1, w, 1)` keeps zeros."""
    low, value, high = inputs
    if low.sign not in (-1, 0) or high.sign not in (0, 1):
        return lose_all(eqn, inputs)
    return [view.bend("clamp") for view in value.views]


def lose_all(eqn: JaxprEqn, inputs: Sequence[AbstractValue]) -> list[View]:
    """Returns all views after an operation that is not understood."""
    return [view.lose(eqn.primitive.name) for view in _all(inputs)]


def _all(values: Sequence[AbstractValue]) -> list[View]:
    return [view for value in values for view in value.views]


def _first(texts: Iterable[str]) -> str:
    return next(filter(None, texts), "")


#: The rules by the name of the primitive.
COMBINE: dict[str, Callable[[JaxprEqn, Sequence[AbstractValue]], Sequence[View]]] = {
    "add": _add,
    "add_any": _add,
    "clamp": _clamp,
    "div": _divide,
    "max": _max_or_min,
    "min": _max_or_min,
    "mul": _multiply,
    "select_n": _select,
    "sub": _add,
}
