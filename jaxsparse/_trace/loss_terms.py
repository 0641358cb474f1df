"""Which products the terms of a loss come from.

A loss may add up terms of several output layers: a policy and a value, a cross-entropy
and a penalty. Each term has one of these layers as its last product, and their sum has
them all. So where values are combined that no longer have the outputs of a layer as an
axis, they are remembered as terms of their own; where activations are combined, as in a
residual stream, they are one.
"""

from collections.abc import Sequence
from typing import Any

from jax.extend.core import JaxprEqn

from jaxsparse._trace.jaxpr import var_shape


#: A product with parameters, identified by their leaves.
Node = frozenset[str]


def terms_of(values: Sequence[Any], frontier: frozenset[Node]) -> frozenset[Any]:
    """Returns the terms of a value that combines others: sets of last products.

    Args:
      values: the values that are combined (`AbstractValue`).
      frontier: the products that reach any of them.
    """
    reached = [value for value in values if value.frontier]
    if len(reached) <= 1 or all(value.reduced for value in reached):
        return frozenset().union(*(value.terms for value in reached))
    return frozenset([frontier])


def mark_reduced(eqn: JaxprEqn, value: Any, output: Any) -> Any:
    """Marks a value that no longer has the outputs of its last products as an axis.

    Args:
      eqn: the equation.
      value: its output (`AbstractValue`).
      output: the variable of the output.
    """
    shape = var_shape(output) if hasattr(output.aval, "shape") else ()
    reduced = not shape or shape[-1] == 1 or _drops_last_axis(eqn, len(shape))
    return value._replace(reduced=True) if value.frontier and reduced else value


def _drops_last_axis(eqn: JaxprEqn, ndim: int) -> bool:
    operand = len(getattr(eqn.invars[0].aval, "shape", ())) if eqn.invars else 0
    if eqn.primitive.name == "gather":  # the entry of a label, as in a cross-entropy
        return ndim < operand
    reduction = eqn.primitive.name.startswith(("reduce_", "arg"))
    return reduction and operand - 1 in eqn.params.get("axes", ())
