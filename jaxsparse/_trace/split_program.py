"""A program cut into stages: what each needs of those before, and runs itself."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from jax.extend import core

from jaxsparse._trace.jaxpr import BoundJaxpr, step_into
from jaxsparse._trace.program import Program


class SubJaxpr(NamedTuple):
    """Some equations of a jaxpr, as a jaxpr of their own."""

    constvars: Sequence[Any]
    invars: Sequence[Any]
    outvars: Sequence[Any]
    eqns: Sequence[Any]


class Stage(NamedTuple):
    """What is run for one stage, on the parameters and what is carried to it.

    Attributes:
      observed: runs up to the products with the stage's leaves.
      forward: runs to the next stage; its results are what is carried there.
    """

    observed: BoundJaxpr
    forward: BoundJaxpr


def order_stages(program: Program, stage_of: Mapping[str, int]) -> list[list[str]]:
    """The leaves of each stage, in the order in which the program meets them.

    Args:
      program: a program without calls.
      stage_of: a number for each leaf, the same for leaves of one stage.

    Raises:
      ValueError: a leaf is contracted inside of a loop or a branch, or two stages lie
        across each other.
    """
    places = _places(program, stage_of)
    stages: dict[int, list[str]] = {}
    for path in sorted(places, key=places.__getitem__):
        stages.setdefault(stage_of[path], []).append(path)
    ordered = list(stages.values())
    for before, after in pairwise(ordered):
        last = max(before, key=lambda path: places[path][-1])
        if places[last][-1] > places[after[0]][0]:
            raise ValueError(
                f"leaf {after[0]!r} is contracted before leaf {last!r} for the last "
                "time, which belongs to an earlier stage: draw boundaries so that both "
                "are in one"
            )
    return ordered


def split_program(
    program: Program, params: int, stages: Sequence[Sequence[str]]
) -> tuple[list[int], list[Stage]]:
    """Cuts a program behind the last product of each stage.

    What depends on parameters alone is not carried: each stage makes it anew, from
    parameters that may have been pruned by then.

    Args:
      program: a program without calls.
      params: how many of its inputs are parameters; they come first.
      stages: the leaves of each, in order.

    Returns:
      Which of the program's other inputs go to the first stage, and the stages.
    """
    jaxpr = program.inner.jaxpr
    varies = set(jaxpr.invars[params:])
    for eqn in jaxpr.eqns:
        if varies.intersection(_variables(eqn.invars)):
            varies.update(eqn.outvars)
    places = _places(program, [path for leaves in stages for path in leaves])
    products = [
        sorted({i for path in leaves for i in places[path]}) for leaves in stages
    ]
    ends = [numbers[-1] for numbers in products]
    starts = [0, *(end + 1 for end in ends[:-1])]

    cut: list[Stage] = []
    wanted: list[Any] = []  # by the next stage
    for start, end, numbers in reversed(list(zip(starts, ends, products, strict=True))):
        results = [jaxpr.eqns[i].outvars[0] for i in numbers]
        eqns, needed = _slice(jaxpr, [*results, *wanted], start, end, varies)
        carried = [v for v in needed if v in varies]
        invars = [*jaxpr.invars[:params], *carried]
        piece = SubJaxpr(jaxpr.constvars, invars, results, eqns)
        observed = BoundJaxpr(piece, program.inner.consts)
        forward = BoundJaxpr(piece._replace(outvars=wanted), program.inner.consts)
        cut.append(Stage(observed, forward))
        wanted = carried
    entry = {v: i for i, v in enumerate(jaxpr.invars[params:])}
    return [entry[v] for v in wanted], cut[::-1]


def _slice(jaxpr, outvars, start: int, end: int, varies) -> tuple[list[Any], list[Any]]:
    """The equations from `start` to `end` that results depend on, and their inputs.

    Those that depend on parameters alone are taken from before, too.
    """
    needed = dict.fromkeys(_variables(outvars))
    eqns = []
    for i in reversed(range(end + 1)):
        eqn = jaxpr.eqns[i]
        made = [v for v in eqn.outvars if v in needed]
        if not made or (i < start and any(v in varies for v in made)):
            continue
        eqns.append(eqn)
        for v in made:
            del needed[v]
        needed.update(dict.fromkeys(_variables(eqn.invars)))
    return eqns[::-1], list(needed)


def _places(program: Program, leaves: Iterable[str]) -> dict[str, list[int]]:
    """The equations that contract each leaf, in order.

    Raises:
      ValueError: one of them is inside of a loop or a branch, or there is none.
    """
    numbers = {step_into((), eqn): i for i, eqn in enumerate(program.inner.jaxpr.eqns)}
    places: dict[str, list[int]] = {leaf: [] for leaf in leaves}
    for path, contractions in program.record.contractions.items():
        for leaf in places.keys() & {found.view.leaf for found in contractions}:
            if path not in numbers:
                raise ValueError(
                    f"leaf {leaf!r} is contracted inside of a {path[0].primitive}, "
                    "whose layers are not pruned one after the other: unroll it into a "
                    "Python loop, or prune all at once from the dense model's inputs, "
                    "by collect_statistics and search"
                )
            places[leaf].append(numbers[path])
    for leaf, found in places.items():
        if not found:
            raise ValueError(
                f"leaf {leaf!r} is not contracted by fn: keep it dense by a rule"
            )
    return places


def _variables(vs: Sequence[Any]) -> list[Any]:
    return [v for v in vs if not isinstance(v, core.Literal)]
