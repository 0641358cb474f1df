"""Products of one value with several weights, joined to one equation of a jaxpr.

A weight is an input of the jaxpr, perhaps transposed, reshaped or cast. It is there
before the first product runs, so all products of one value can run at that place.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend import core
from jax.extend.core import JaxprEqn, Primitive

from jaxsparse._trace.jaxpr import BoundJaxpr


#: Joined products. It has no implementation: a rule of `evaluate` takes it apart.
_PRIMITIVE = Primitive("joint_products")
_PRIMITIVE.multiple_results = True

#: What a weight may go through before its product.
_VIEWS = frozenset(
    ["convert_element_type", "copy", "expand_dims", "reshape", "squeeze", "transpose"]
)


class JointProducts(NamedTuple):
    """Products of one value, each with a weight of its own.

    Attributes:
      eqns: the equations of the products.
    """

    eqns: tuple[JaxprEqn, ...]

    def split(self, inputs: Sequence[Any]) -> list[list[Any]]:
        """Returns the two operands of each product."""
        return [list(inputs[i : i + 2]) for i in range(0, len(inputs), 2)]


def joint_products(eqn: JaxprEqn) -> JointProducts | None:
    """Returns what an equation joins, or None if it is any other equation."""
    if eqn.primitive is not _PRIMITIVE:
        return None
    return JointProducts(eqn.params["eqns"])


def join_products(bound: BoundJaxpr) -> BoundJaxpr:
    """Returns the jaxpr with the products of each value by weights joined."""
    return BoundJaxpr(_join(bound.jaxpr), bound.consts)


def join_products_inside(eqn: JaxprEqn) -> JaxprEqn:
    """Returns an equation with the products in its jaxprs joined, one level deep."""

    def join(param: Any) -> Any:
        if isinstance(param, core.ClosedJaxpr):
            return param.replace(jaxpr=_join(param.jaxpr))
        return _join(param) if isinstance(param, core.Jaxpr) else param

    return eqn.replace(params={name: join(p) for name, p in eqn.params.items()})


def _join(jaxpr: Any) -> Any:
    views = _views(jaxpr)
    groups = _groups(jaxpr, views)
    first = {id(group[0]): group for group in groups}
    joined = {id(eqn) for group in groups for eqn in group}
    eqns: list[JaxprEqn] = []
    there: set[int] = set()

    def append(eqn: JaxprEqn) -> None:
        if id(eqn) not in there:
            there.add(id(eqn))
            eqns.append(eqn)

    def append_view(var: Any) -> None:
        if _is_view(var, views) and (eqn := views[var]) is not None:
            append_view(eqn.invars[0])
            append(eqn)

    for eqn in jaxpr.eqns:
        if (group := first.get(id(eqn))) is not None:
            for var in (var for eqn in group for var in eqn.invars):
                append_view(var)
            append(_joint_equation(group))
        elif id(eqn) not in joined:
            append(eqn)
    return jaxpr.replace(eqns=eqns)


def _views(jaxpr: Any) -> dict[Any, JaxprEqn | None]:
    """Returns the inputs, and all that is made of a single one by operations on views.

    Each has the equation that makes it, an input has none.
    """
    views: dict[Any, JaxprEqn | None] = dict.fromkeys([*jaxpr.constvars, *jaxpr.invars])
    for eqn in jaxpr.eqns:
        is_unary = eqn.primitive.name in _VIEWS and len(eqn.invars) == 1
        if is_unary and _is_view(eqn.invars[0], views):
            views[eqn.outvars[0]] = eqn
    return views


def _groups(jaxpr: Any, views: dict[Any, JaxprEqn | None]) -> list[list[JaxprEqn]]:
    """Returns products that follow one another and have one operand in common.

    Another product between two of them keeps them apart: what is computed earlier than
    in the jaxpr takes memory until it is used.
    """
    groups: list[list[JaxprEqn]] = []
    common: set[Any] = set()
    for eqn in jaxpr.eqns:
        if eqn.primitive.name != "dot_general":
            continue
        (lhs, rhs), (axes, _) = eqn.invars, eqn.params["dimension_numbers"]
        sides = ((lhs, axes[0], rhs), (rhs, axes[1], lhs))
        own = {
            (x, tuple(x_axes))
            for x, x_axes, weight in sides
            if not isinstance(x, core.Literal) and _is_view(weight, views)
        }
        if common & own:
            common &= own
            groups[-1].append(eqn)
        else:
            common = own
            groups.append([eqn])
    return [group for group in groups if len(group) > 1]


def _is_view(var: Any, views: dict[Any, JaxprEqn | None]) -> bool:
    return not isinstance(var, core.Literal) and var in views


def _joint_equation(eqns: Sequence[JaxprEqn]) -> JaxprEqn:
    return eqns[0].replace(
        primitive=_PRIMITIVE,
        invars=[var for eqn in eqns for var in eqn.invars],
        outvars=[var for eqn in eqns for var in eqn.outvars],
        params={"eqns": tuple(eqns)},
    )
