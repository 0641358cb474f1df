"""Which equations compute a ReLU, and which a square."""

from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn, Literal

from jaxsparse._trace.jaxpr import BoundJaxpr, Call, control_flow


def is_relu(eqn: JaxprEqn) -> bool:
    """Returns whether an equation is the maximum with zero."""
    return eqn.primitive.name == "max" and any(_is_literal(x, 0) for x in eqn.invars)


def is_relu_jaxpr(body: BoundJaxpr) -> bool:
    """Returns whether a jaxpr, perhaps through calls, is a ReLU of its only input."""
    if len(body.jaxpr.eqns) != 1 or len(body.jaxpr.invars) != 1:
        return False
    (eqn,) = body.jaxpr.eqns
    if [*body.jaxpr.outvars] != [*eqn.outvars]:
        return False
    flow = control_flow(eqn)
    return is_relu_jaxpr(flow.body) if isinstance(flow, Call) else is_relu(eqn)


def is_square(eqn: JaxprEqn) -> bool:
    """Returns whether an equation squares its first operand."""
    match eqn.primitive.name:
        case "integer_pow":
            return eqn.params["y"] == 2
        case "pow":
            return _is_literal(eqn.invars[1], 2)
        case name:
            return name == "square" or is_product_with_itself(eqn)


def is_product_with_itself(eqn: JaxprEqn) -> bool:
    """Returns whether an equation multiplies a value by itself."""
    return eqn.primitive.name == "mul" and eqn.invars[0] is eqn.invars[1]


def has_literal(eqn: JaxprEqn) -> bool:
    """Returns whether an operand of an equation is a literal number."""
    return any(isinstance(x, Literal) for x in eqn.invars)


def _is_literal(operand: Any, value: int) -> bool:
    return isinstance(operand, Literal) and bool(np.all(operand.val == value))
