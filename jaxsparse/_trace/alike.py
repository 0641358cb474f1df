"""Stages that are the same program, such as the blocks of a network.

XLA compiles a network's equal blocks one by one. Two stages with the same key compute
the same from their inputs, so one compiled program can run both.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
from jax.extend import core
from jax.extend.core import JaxprEqn

from jaxsparse._trace.jaxpr import BoundJaxpr
from jaxsparse._trace.split_program import Stage


class NotAlikeError(Exception):
    """A stage that can't be compared with others."""


@dataclass(frozen=True)
class _Typed:
    """A value that equals only values of its own type: 1 is not True."""

    type: type
    value: Hashable


def stage_key(stage: Stage, note: Callable[[JaxprEqn], Hashable]) -> Hashable:
    """Returns a key that stages have in common if they are the same program.

    The key does not hold arrays. Constants are inputs of a stage.

    Args:
      stage: a stage.
      note: returns what else the program of an equation depends on.

    Raises:
      NotAlikeError: an equation holds a function, or anything else whose equality does
        not say that it computes the same.
    """
    shapes = len(stage.consts), len(stage.params), stage.num_products
    return *shapes, _jaxpr_key(stage.jaxpr, note)


def program_key(bound: BoundJaxpr) -> Hashable:
    """Returns a key that programs have in common if they compute the same.

    Constants are inputs, as of a stage.

    Raises:
      NotAlikeError: as `stage_key`. Without calls (`inline_calls`), few programs do.
    """
    return len(bound.consts), _jaxpr_key(bound.jaxpr, lambda _: None)


def _jaxpr_key(jaxpr: Any, note: Callable[[JaxprEqn], Hashable]) -> Hashable:
    numbers: dict[Any, int] = {}
    for v in (*jaxpr.constvars, *jaxpr.invars):
        numbers.setdefault(v, len(numbers))

    def read(v: Any) -> Hashable:
        if isinstance(v, core.Literal):
            return v.aval, _value_key(np.asarray(v.val))
        return numbers[v]

    eqns = []
    for eqn in jaxpr.eqns:
        operands = tuple(map(read, eqn.invars))
        for v in eqn.outvars:
            numbers.setdefault(v, len(numbers))
        results = tuple(v.aval for v in eqn.outvars)
        params = _value_key(eqn.params)
        eqns.append((eqn.primitive.name, operands, params, results, note(eqn)))
    inputs = tuple(v.aval for v in (*jaxpr.constvars, *jaxpr.invars))
    return inputs, tuple(eqns), tuple(map(read, jaxpr.outvars))


def _value_key(value: Any) -> Hashable:
    """Returns a key of a parameter of an equation."""
    key: Any = value
    match value:
        case core.ClosedJaxpr():
            if value.consts:
                raise NotAlikeError
            key = _jaxpr_key(value.jaxpr, lambda _: None)
        case core.Jaxpr():
            key = _jaxpr_key(value, lambda _: None)
        case np.ndarray():
            key = value.dtype, value.shape, value.tobytes()
        case float():
            key = value.hex()  # 0.0 is not -0.0
        case tuple() | list():
            key = tuple(map(_value_key, value))
        case Mapping():
            key = tuple((name, _value_key(value[name])) for name in sorted(value))
        case _ if is_dataclass(value) and not isinstance(value, type):
            key = tuple(_value_key(getattr(value, x.name)) for x in fields(value))
        case _ if callable(value) and not isinstance(value, type):
            raise NotAlikeError
    try:
        hash(key)
    except TypeError:
        raise NotAlikeError from None
    return _Typed(type(value), key)
