"""A function of parameters as a program: its jaxpr, and how that uses them."""

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
      bound: its jaxpr, a function of the arrays among the parameters followed by the
        arrays among the other arguments.
      inputs: the arrays among the other arguments.
      leaves: all leaves of the parameters by canonical path.
      record: what the analysis recorded.
      results: what is known about its results.
    """

    bound: BoundJaxpr
    inputs: list[Any]
    leaves: dict[str, Any]
    record: Record
    results: list[AbstractValue]

    @property
    def arrays(self) -> dict[str, Any]:
        """The leaves that are arrays: the first arguments of `bound`, in order."""
        return {path: leaf for path, leaf in self.leaves.items() if is_array(leaf)}

    @property
    def uses(self) -> dict[str, tuple[Use, ...]]:
        """The uses of each leaf by canonical path."""
        uses: dict[str, list[Use]] = {path: [] for path in self.leaves}
        for path, use in self.record.uses:
            uses[path].append(use)
        return {path: tuple(of_leaf) for path, of_leaf in uses.items()}


def trace(
    fn: Callable[..., Any],
    params: PyTree,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
) -> Program:
    """Traces `fn(params, *args, **kwargs)`, from shapes, and analyses its jaxpr.

    Args:
      fn: the function.
      params: a tree of arrays or `jax.ShapeDtypeStruct`.
      args: its further arguments.
      kwargs: its further arguments by name.

    Raises:
      TypeError: `args` is one argument, not a tuple of arguments.
    """
    if not isinstance(args, Sequence) or isinstance(args, str):
        raise TypeError(
            "args must be a tuple of the arguments of fn after params, got "
            f"{type(args).__name__}: for one argument x write args=(x,)"
        )
    leaves, structure = flatten(params)
    arrays = {path: leaf for path, leaf in leaves.items() if is_array(leaf)}
    arguments, rest = jax.tree.flatten((args, dict(kwargs or {})))
    indices = [i for i, leaf in enumerate(arguments) if is_array(leaf)]

    def on_arrays(params: list[Any], inputs: list[Any]) -> list[Any]:
        all_leaves = {**leaves, **dict(zip(arrays, params, strict=True))}
        filled = list(arguments)
        for i, value in zip(indices, inputs, strict=True):
            filled[i] = value
        args, kwargs = rest.unflatten(filled)
        result = fn(structure.unflatten(all_leaves.values()), *args, **kwargs)
        return [x for x in jax.tree.leaves(result) if is_array(x)]

    inputs = [arguments[i] for i in indices]
    closed = jax.make_jaxpr(on_arrays)([*arrays.values()], inputs)
    return _analyse(BoundJaxpr(closed.jaxpr, closed.consts), inputs, leaves)


def inline_calls(program: Program) -> Program:
    """Returns the program without calls: only loops and branches contain jaxprs."""
    run = lambda *args: evaluate(program.bound, args, keep_equation)[0]
    closed = jax.make_jaxpr(run)(*program.arrays.values(), *program.inputs)
    bound = BoundJaxpr(closed.jaxpr, closed.consts)
    return _analyse(bound, program.inputs, program.leaves)


def _analyse(bound: BoundJaxpr, inputs: list[Any], leaves: dict[str, Any]) -> Program:
    arrays = {path: leaf for path, leaf in leaves.items() if is_array(leaf)}
    values = [
        AbstractValue(views=(view_of(path, leaf.shape),), params=True)
        for path, leaf in arrays.items()
    ]
    values += [AbstractValue(inputs=True)] * len(inputs)
    record = new_record()
    results = analyse(bound, values, record)
    used = {path for path, _ in record.uses}
    record.uses.extend(
        (view.leaf, Use("return", "elementwise", reason=view.lost))
        for view in dict.fromkeys(view for value in results for view in value.views)
        if view.leaf not in used
    )
    return Program(bound, inputs, leaves, record, results)
