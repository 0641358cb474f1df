"""Squared ReLUs on their way to a product, with what they are computed from.

A pass that compresses `relu(h)**2` then reads `h` and computes it on the way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn
from jaxtyping import Array

from jaxsparse._trace import Call, Site, SquaredReLUs, bind, control_flow, is_square


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Rectified:
    """A ReLU or its square as a value in a program.

    Attributes:
      dense: the ReLU or its square.
      before: what it is the ReLU of.
      squared: whether it is the square.
    """

    dense: Array
    before: Array
    squared: bool = field(metadata={"static": True})


def rectified(
    found: SquaredReLUs, site: Site, inputs: Sequence[Any]
) -> Rectified | None:
    """Returns the result of an equation that is a ReLU or its square, or None.

    Args:
      found: which ReLUs.
      site: the equation.
      inputs: its inputs.
    """
    if site.path in found.relus:
        inputs = without_rectified(inputs)
        (relu,) = bind(site.eqn, inputs)
        before = [x for x in inputs if jnp.shape(x) == relu.shape]  # the other is 0
        return Rectified(relu, jnp.asarray(before[0]), squared=False)
    relus = [x for x in inputs if isinstance(x, Rectified)]
    if relus and not relus[0].squared and is_square(site.eqn):
        (square,) = bind(site.eqn, without_rectified(inputs))
        return Rectified(square, relus[0].before, squared=True)
    return None


def without_rectified(inputs: Sequence[Any]) -> list[Any]:
    """Returns inputs as arrays where they are ReLUs or squares."""
    return [x.dense if isinstance(x, Rectified) else x for x in inputs]


def takes_rectified(eqn: JaxprEqn) -> bool:
    """Returns whether an equation is a call that takes such values along."""
    return isinstance(control_flow(eqn), Call) and eqn.primitive.name in _JITS


_JITS = frozenset(["closed_call", "core_call", "jit", "pjit"])
