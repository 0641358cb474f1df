"""A program split into stages that run one after the other."""

from collections.abc import Iterable, Mapping, Sequence, Set as AbstractSet
from itertools import pairwise
from typing import Any, NamedTuple

from jax.extend import core
from jax.extend.core import JaxprEqn

from jaxsparse._trace.jaxpr import BoundJaxpr, step_into
from jaxsparse._trace.program import Program


class SubJaxpr(NamedTuple):
    """Some equations of a jaxpr, as a jaxpr of their own.

    Attributes:
      constvars: the variables of the constants.
      invars: the variables of the inputs.
      outvars: the variables of the outputs.
      eqns: the equations, in order.
    """

    constvars: Sequence[Any]
    invars: Sequence[Any]
    outvars: Sequence[Any]
    eqns: Sequence[JaxprEqn]


class Stage(NamedTuple):
    """What one stage runs, on the parameters and the values of the stage before.

    Attributes:
      observed: runs up to the products with the stage's leaves.
      forward: runs up to the next stage, and returns the values that it needs.
    """

    observed: BoundJaxpr
    forward: BoundJaxpr


def order_stages(program: Program, stage_of: Mapping[str, int]) -> list[list[str]]:
    """Returns the leaves of each stage, in the order in which the program uses them.

    Args:
      program: a program without calls.
      stage_of: a number for each leaf, the same for leaves of one stage.

    Raises:
      ValueError: a leaf is contracted inside a loop or a branch, or two stages overlap.
    """
    indices = _product_indices(program, stage_of)
    stages: dict[int, list[str]] = {}
    for path in sorted(indices, key=indices.__getitem__):
        stages.setdefault(stage_of[path], []).append(path)
    ordered = list(stages.values())
    for before, after in pairwise(ordered):
        last = max(before, key=lambda path: indices[path][-1])
        if indices[last][-1] > indices[after[0]][0]:
            raise ValueError(
                f"leaf {after[0]!r} is contracted before the last product with leaf "
                f"{last!r}, which belongs to an earlier stage: choose boundaries that "
                "put both into one stage"
            )
    return ordered


def split_program(
    program: Program, num_params: int, stages: Sequence[Sequence[str]]
) -> tuple[list[int], list[Stage]]:
    """Splits a program after the last product of each stage.

    Values that depend on parameters alone are not passed on: each stage recomputes
    them, from parameters that may have been pruned by then.

    Args:
      program: a program without calls.
      num_params: the number of its inputs that are parameters; they come first.
      stages: the leaves of each stage, in order.

    Returns:
      The indices of the program's other inputs that the first stage needs, and the
      stages.
    """
    jaxpr = program.bound.jaxpr
    params, inputs = jaxpr.invars[:num_params], jaxpr.invars[num_params:]
    varying = _dependent(jaxpr, inputs)
    indices = _product_indices(program, [path for leaves in stages for path in leaves])
    products = [
        sorted({i for path in leaves for i in indices[path]}) for leaves in stages
    ]
    ends = [of_stage[-1] for of_stage in products]
    starts = [0, *(end + 1 for end in ends[:-1])]

    split: list[Stage] = []
    needed: list[Any] = []  # by the next stage
    for start, end, of_stage in reversed([*zip(starts, ends, products, strict=True)]):
        results = [jaxpr.eqns[i].outvars[0] for i in of_stage]
        eqns, variables = _slice(jaxpr, [*results, *needed], start, end, varying)
        passed_on = [v for v in variables if v in varying]
        part = SubJaxpr(jaxpr.constvars, [*params, *passed_on], results, eqns)
        observed = BoundJaxpr(part, program.bound.consts)
        forward = BoundJaxpr(part._replace(outvars=needed), program.bound.consts)
        split.append(Stage(observed, forward))
        needed = passed_on
    index = {v: i for i, v in enumerate(inputs)}
    return [index[v] for v in needed], split[::-1]


def _dependent(jaxpr: Any, inputs: Iterable[Any]) -> set[Any]:
    """Returns the variables that depend on some inputs."""
    dependent = set(inputs)
    for eqn in jaxpr.eqns:
        if dependent.intersection(_variables(eqn.invars)):
            dependent.update(eqn.outvars)
    return dependent


def _slice(
    jaxpr: Any,
    outvars: Sequence[Any],
    start: int,
    end: int,
    varying: AbstractSet[Any],
) -> tuple[list[JaxprEqn], list[Any]]:
    """Returns the equations `start` to `end` that `outvars` need, and their inputs.

    Equations before `start` are included if they depend on parameters alone.
    """
    needed = dict.fromkeys(_variables(outvars))
    eqns = []
    for i in reversed(range(end + 1)):
        eqn = jaxpr.eqns[i]
        outputs = [v for v in eqn.outvars if v in needed]
        if not outputs or (i < start and any(v in varying for v in outputs)):
            continue
        eqns.append(eqn)
        for v in outputs:
            del needed[v]
        needed.update(dict.fromkeys(_variables(eqn.invars)))
    return eqns[::-1], list(needed)


def _product_indices(program: Program, leaves: Iterable[str]) -> dict[str, list[int]]:
    """Returns the indices of the equations that contract each leaf, in order.

    Raises:
      ValueError: one of them is inside a loop or a branch, or a leaf has none.
    """
    eqns = program.bound.jaxpr.eqns
    index = {step_into((), eqn): i for i, eqn in enumerate(eqns)}
    indices: dict[str, list[int]] = {leaf: [] for leaf in leaves}
    for path, contractions in program.record.contractions.items():
        contracted = {contraction.view.leaf for contraction in contractions}
        for leaf in indices.keys() & contracted:
            if path not in index:
                raise ValueError(
                    f"leaf {leaf!r} is contracted inside a {path[0].primitive}, whose "
                    "layers cannot be pruned one after the other: unroll it into a "
                    "Python loop, or prune all layers at once from the dense model's "
                    "inputs, with collect_statistics and search"
                )
            indices[leaf].append(index[path])
    for leaf, of_leaf in indices.items():
        if not of_leaf:
            raise ValueError(
                f"leaf {leaf!r} is not contracted by fn: keep it dense with a rule"
            )
    return indices


def _variables(vs: Sequence[Any]) -> list[Any]:
    return [v for v in vs if not isinstance(v, core.Literal)]
