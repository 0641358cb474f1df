"""Follows what each weight is multiplied by on its way to a product.

A value that shows weights, each times a factor, is represented by a `Factored`: the
value, and the factor of every element. A factor is what an operation multiplies weights
by, whatever computes it; if that is a statistic of the weights themselves, it is held
fixed. The analysis knows where this is exact (`View.bent` is empty).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn

from jaxsparse._trace.evaluate import EquationRule, Site, bind, run_equation
from jaxsparse._trace.jaxpr import ControlFlow, Scan, ShardMap, While, control_flow
from jaxsparse._trace.view_rules import BENDS, KEEPS_ZEROS


@partial(
    jax.tree_util.register_dataclass, data_fields=["value", "factors"], meta_fields=[]
)
@dataclass(frozen=True)
class Factored:
    """An array that shows leaves, each multiplied by factors.

    Attributes:
      value: the array.
      factors: by the path of a leaf, the float32 factor of each element of the array.
    """

    value: Any
    factors: dict[str, Any]


def factored(path: str, leaf: Any) -> Factored:
    """Returns a leaf with factors of one."""
    return Factored(leaf, {path: jnp.ones(leaf.shape, jnp.float32)})


def without_factors(x: Any) -> Any:
    """Returns the array itself."""
    return x.value if isinstance(x, Factored) else x


def run_with_factors(
    site: Site, inputs: Sequence[Any], rule: EquationRule, state: Any
) -> tuple[Sequence[Any], Any]:
    """Runs an equation, of which some inputs are `Factored`, as `run_equation` does."""
    inside = control_flow(site.eqn)
    if inside is not None:
        passed = _for_body(inside, inputs)
        return run_equation(site, passed, rule, state, without_factors)
    values = [without_factors(x) for x in inputs]
    outputs = bind(site.eqn, values)
    factors: list[dict[str, Any]] = [{} for _ in outputs]
    of_inputs = [x.factors if isinstance(x, Factored) else {} for x in inputs]
    for path in dict.fromkeys(path for of_input in of_inputs for path in of_input):
        own = [of_input.get(path) for of_input in of_inputs]
        for i, factor in enumerate(_output_factors(site.eqn, values, own)):
            if factor is not None:
                factors[i][path] = jnp.broadcast_to(factor, outputs[i].shape)
    return [
        Factored(output, by_path) if by_path else output
        for output, by_path in zip(outputs, factors, strict=True)
    ], state


def _for_body(inside: ControlFlow, inputs: Sequence[Any]) -> list[Any]:
    """Returns the inputs with factors where a body can take them.

    What loops carry, what branches return and what shards hold has none.
    """
    match inside:
        case Scan(num_consts=first, num_carry=carry):
            carried = range(first, first + carry)
        case While(num_condition=condition, num_body=body):
            carried = range(condition + body, len(inputs))
        case ShardMap():
            carried = range(len(inputs))
        case _:
            carried = range(0)
    return [without_factors(x) if i in carried else x for i, x in enumerate(inputs)]


def _output_factors(
    eqn: JaxprEqn, values: Sequence[Any], factors: Sequence[Any]
) -> Sequence[Any]:
    """Returns the factors of one leaf in each output, or None.

    Args:
      eqn: the equation.
      values: its inputs.
      factors: the factor of the leaf in each input, or None.
    """
    name = eqn.primitive.name
    if name in _RULES:
        return [_RULES[name](eqn, values, factors)]
    if name in _MOVES and factors[0] is not None:
        return bind(eqn, [factors[0], *values[1:]])
    if name in KEEPS_ZEROS and name not in BENDS:
        return factors
    return [None] * len(eqn.outvars)


def _multiply(_: JaxprEqn, values: Sequence[Any], factors: Sequence[Any]) -> Any:
    left, right = factors
    if left is not None and right is not None:
        return None
    if left is None:
        return _wide(values[0]) * right
    return left * _wide(values[1])


def _divide(_: JaxprEqn, values: Sequence[Any], factors: Sequence[Any]) -> Any:
    weight, divisor = factors
    return None if divisor is not None else weight / _wide(values[1])


def _add(eqn: JaxprEqn, _: Sequence[Any], factors: Sequence[Any]) -> Any:
    left, right = factors
    if right is not None and eqn.primitive.name == "sub":
        right = -right
    if left is None or right is None:
        return right if left is None else left
    return left + right


def _select(_: JaxprEqn, values: Sequence[Any], factors: Sequence[Any]) -> Any:
    which, *cases = values
    own = [
        jnp.zeros(case.shape, jnp.float32) if factor is None else factor
        for case, factor in zip(cases, factors[1:], strict=True)
    ]
    return lax.select_n(which, *own)


def _concatenate(eqn: JaxprEqn, values: Sequence[Any], factors: Sequence[Any]) -> Any:
    own = [
        jnp.zeros(value.shape, jnp.float32) if factor is None else factor
        for value, factor in zip(values, factors, strict=True)
    ]
    return lax.concatenate(own, eqn.params["dimension"])


def _pad(eqn: JaxprEqn, _: Sequence[Any], factors: Sequence[Any]) -> Any:
    if factors[0] is None:
        return None
    config = eqn.params["padding_config"]
    return lax.pad(factors[0], jnp.zeros((), jnp.float32), config)


def _wide(x: Any) -> Any:
    return x.astype(jnp.float32)


#: Operations that move elements, which move factors in the same way.
_MOVES = frozenset(
    [
        "broadcast_in_dim",
        "dynamic_slice",
        "reshape",
        "rev",
        "slice",
        "split",
        "squeeze",
        "transpose",
    ]
)

#: `(equation, inputs, factors of the inputs) -> factor of the output`.
_RULES: dict[str, Callable[[JaxprEqn, Sequence[Any], Sequence[Any]], Any]] = {
    "add": _add,
    "add_any": _add,
    "concatenate": _concatenate,
    "div": _divide,
    "mul": _multiply,
    "neg": lambda _eqn, _values, factors: -factors[0],
    "pad": _pad,
    "select_n": _select,
    "sub": _add,
}
