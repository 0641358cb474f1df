"""A function of parameters as a program: its jaxpr, and what that does with them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from jaxsparse._trace.dataflow import analyse
from jaxsparse._trace.evaluate import evaluate, keep_equation
from jaxsparse._trace.jaxpr import BoundJaxpr
from jaxsparse._trace.record import AbstractValue, Record, Use, new_record
from jaxsparse._trace.view import view_of
from jaxsparse._trees import flatten, is_array


class Program(NamedTuple):
    """A traced function.

    Attributes:
      inner: its jaxpr, of the arrays among the parameters and then of those among the
        other arguments.
      inputs: the latter.
      leaves: all leaves of the parameters by canonical path.
      record: what the walk through it wrote down.
      results: what is known of its results.
    """

    inner: BoundJaxpr
    inputs: list[Any]
    leaves: dict[str, Any]
    record: Record
    results: list[AbstractValue]

    @property
    def uses(self) -> dict[str, tuple[Use, ...]]:
        """The uses of each leaf by canonical path."""
        uses: dict[str, list[Use]] = {path: [] for path in self.leaves}
        for leaf, use in self.record.uses:
            uses[leaf].append(use)
        return {path: tuple(found) for path, found in uses.items()}


def trace(
    fn: Callable[..., Any],
    params: PyTree,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    flat: bool = False,
) -> Program:
    """Traces `fn(params, *args, **kwargs)`, from shapes, and walks through it.

    Where `flat`, what the program calls stands in it: only loops and branches have
    jaxprs of their own.
    """
    leaves, structure = flatten(params)
    named = {path: leaf for path, leaf in leaves.items() if is_array(leaf)}
    others, rest = jax.tree.flatten((args, dict(kwargs or {})))
    places = [i for i, leaf in enumerate(others) if is_array(leaf)]

    def traced(arrays, inputs):
        whole = {**leaves, **dict(zip(named, arrays, strict=True))}
        given = list(others)
        for place, value in zip(places, inputs, strict=True):
            given[place] = value
        args, kwargs = rest.unflatten(given)
        result = fn(structure.unflatten(whole.values()), *args, **kwargs)
        return [x for x in jax.tree.leaves(result) if is_array(x)]

    inputs = [others[i] for i in places]
    given = list(named.values()), inputs
    closed = jax.make_jaxpr(traced)(*given)
    if flat:
        calling = BoundJaxpr(closed.jaxpr, closed.consts)
        run = lambda arrays, inputs: evaluate(
            calling, [*arrays, *inputs], keep_equation
        )
        closed = jax.make_jaxpr(lambda *given: run(*given)[0])(*given)
    values = [
        AbstractValue(views=(view_of(path, leaf.shape),), params=True)
        for path, leaf in named.items()
    ]
    values += [AbstractValue(inputs=True)] * len(places)
    inner = BoundJaxpr(closed.jaxpr, closed.consts)
    record = new_record()
    results = analyse(inner, values, record)
    return Program(inner, inputs, leaves, record, results)
