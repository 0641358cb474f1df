"""A program split into stages that run one after the other."""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence, Set as AbstractSet
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from jax.extend import core
from jax.extend.core import JaxprEqn

from jaxsparse._trace.jaxpr import BoundJaxpr, control_flow, step_into, var_shape
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
    """What one stage runs.

    Its inputs are constants, parameters, and the values of the stage before, in this
    order. Its outputs are the results of its products, and the values that the next
    stage takes.

    Attributes:
      consts: the constants.
      params: the indices of the parameters.
      num_products: the number of outputs that are results of products.
      jaxpr: the equations.
    """

    consts: list[Any]
    params: list[int]
    num_products: int
    jaxpr: SubJaxpr

    def bind(self, consts: Sequence[Any]) -> BoundJaxpr:
        """Returns the jaxpr with constants, as a function of all other inputs."""
        inputs = self.jaxpr.invars[len(consts) :]
        constvars = self.jaxpr.invars[: len(consts)]
        part = self.jaxpr._replace(constvars=constvars, invars=inputs)
        return BoundJaxpr(part, consts)


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
    program: Program,
    products: Sequence[Sequence[int]],
    *,
    narrow: bool = False,
) -> tuple[list[int], list[Stage]]:
    """Splits a program after the last product of each stage.

    Values that depend on parameters alone are not passed on: each stage recomputes
    them, from parameters that may have been pruned by then.

    Args:
      program: a program without calls.
      products: the indices of the equations that are the products of each stage, in
        order.
      narrow: whether to split where the fewest bytes are passed on, anywhere between
        the products of two stages, and to return one more stage, without products, for
        what comes after the last product.

    Returns:
      The indices of the program's other inputs that the first stage needs, and the
      stages.
    """
    jaxpr = program.bound.jaxpr
    num_params = len(program.arrays)
    params, inputs = jaxpr.invars[:num_params], jaxpr.invars[num_params:]
    index_of_param = {v: i for i, v in enumerate(params)}
    consts = dict(zip(jaxpr.constvars, program.bound.consts, strict=True))
    varying = _dependent(jaxpr, inputs)
    recomputed = [
        i for i, eqn in enumerate(jaxpr.eqns) if varying.isdisjoint(eqn.outvars)
    ]
    ends = [of_stage[-1] for of_stage in products]
    needed: list[Any] = []  # by the next stage
    if narrow:
        ends = _narrow_ends(jaxpr, varying, products)
        last = jaxpr.eqns[[-1, *ends][-2] + 1 :]
        defined = {v for eqn in last for v in eqn.outvars}
        needed = [v for v in _variables(jaxpr.outvars) if v in defined]
        products, ends = [*products, []], [*ends, len(jaxpr.eqns) - 1]
    ends[-1] = len(jaxpr.eqns) - 1  # for effects
    starts = [0, *(end + 1 for end in ends[:-1])]

    split: list[Stage] = []
    for start, end, of_stage in reversed([*zip(starts, ends, products, strict=True)]):
        results = [jaxpr.eqns[i].outvars[0] for i in of_stage]
        outvars = [*results, *needed]
        before = recomputed[: bisect_left(recomputed, start)]
        eqns, variables = _slice(jaxpr, outvars, [*before, *range(start, end + 1)])
        passed_on = [v for v in variables if v in varying]
        used = sorted(index_of_param[v] for v in variables if v in index_of_param)
        constants = [v for v in variables if v in consts]
        invars = [*constants, *(params[i] for i in used), *passed_on]
        part = SubJaxpr([], invars, outvars, eqns)
        values = [consts[v] for v in constants]
        split.append(Stage(values, used, len(results), part))
        needed = passed_on
    index = {v: i for i, v in enumerate(inputs)}
    return [index[v] for v in needed], split[::-1]


def _narrow_ends(
    jaxpr: Any, varying: AbstractSet[Any], products: Sequence[Sequence[int]]
) -> list[int]:
    """Returns the last equation of each stage.

    It is the last one of those after which the fewest bytes are needed by others, from
    the stage's last product to the next stage's first. After the last product only
    elementwise operations are considered: the function may return a mere loss.
    """
    count = len(jaxpr.eqns)
    defined_at = {v: i for i, eqn in enumerate(jaxpr.eqns) for v in eqn.outvars}
    last_use = {
        v: i for i, eqn in enumerate(jaxpr.eqns) for v in _variables(eqn.invars)
    }
    last_use |= dict.fromkeys(_variables(jaxpr.outvars), count)
    change = [0] * (count + 1)  # in the bytes that are needed later
    for v in varying & last_use.keys():
        nbytes = math.prod(var_shape(v)) * v.aval.dtype.itemsize
        change[defined_at.get(v, 0)] += nbytes
        change[last_use[v]] -= nbytes
    needed = list(accumulate(change))
    firsts = [of_stage[0] for of_stage in products[1:]]
    lasts = [of_stage[-1] for of_stage in products]
    limit = lasts[-1] + 1
    while limit < count and _is_elementwise(jaxpr.eqns[limit], varying):
        limit += 1
    return [
        min(reversed(range(last, max(end, last + 1))), key=needed.__getitem__)
        for last, end in zip(lasts, [*firsts, limit], strict=True)
    ]


def _is_elementwise(eqn: JaxprEqn, varying: AbstractSet[Any]) -> bool:
    """Whether an equation is no product and its result has as many elements."""
    size = lambda v: math.prod(var_shape(v))
    sizes = [size(v) for v in _variables(eqn.invars) if v in varying]
    is_product = eqn.primitive.name in ("dot_general", "conv_general_dilated")
    same = all(size(v) == max(sizes, default=0) for v in eqn.outvars)
    return not sizes or (same and not is_product and control_flow(eqn) is None)


def products_of(program: Program, leaves: Iterable[str]) -> list[int]:
    """Returns the indices of the outermost equations that hold a product with a leaf.

    Args:
      program: a program without calls.
      leaves: the paths of the leaves.
    """
    index = {id(eqn): i for i, eqn in enumerate(program.bound.jaxpr.eqns)}
    wanted = set(leaves)
    return sorted(
        {
            index[path[0].identity]
            for path, contractions in program.record.contractions.items()
            if any(contraction.view.leaf in wanted for contraction in contractions)
        }
    )


def _dependent(jaxpr: Any, inputs: Iterable[Any]) -> set[Any]:
    """Returns the variables that depend on some inputs."""
    dependent = set(inputs)
    for eqn in jaxpr.eqns:
        if dependent.intersection(_variables(eqn.invars)):
            dependent.update(eqn.outvars)
    return dependent


def _slice(
    jaxpr: Any, outvars: Sequence[Any], indices: Sequence[int]
) -> tuple[list[JaxprEqn], list[Any]]:
    """Returns those of some equations that `outvars` need, and their inputs.

    Equations that have effects are needed.
    """
    needed = dict.fromkeys(_variables(outvars))
    eqns = []
    for i in reversed(indices):
        eqn = jaxpr.eqns[i]
        outputs = [v for v in eqn.outvars if v in needed]
        if not (outputs or eqn.effects):
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
