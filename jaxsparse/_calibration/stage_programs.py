"""Compiled programs of stages, one for all stages that are alike."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
from jax.extend.core import JaxprEqn
from jaxtyping import Array

from jaxsparse._calibration.accumulator import Accumulator
from jaxsparse._calibration.matrices import LayerMatrices
from jaxsparse._calibration.observer import observer_rule
from jaxsparse._trace import (
    Contraction,
    NotAlikeError,
    Path,
    Program,
    Stage,
    evaluate,
    factored,
    products_of,
    split_program,
    stage_key,
)


class StageProgram(NamedTuple):
    """A stage and its compiled program.

    Attributes:
      stage: the stage.
      leaves: the paths of the leaves whose inputs it accumulates, in order.
      run: `(constants, parameters, values, weights, number, accumulators)` to the
        values that the next stage takes and new accumulators. It overwrites
        accumulators, which are in the order of `leaves`.
    """

    stage: Stage
    leaves: tuple[str, ...]
    run: Callable[..., tuple[list[Array], list[Accumulator]]]

    def __call__(
        self,
        arrays: Sequence[Any],
        values: Sequence[Any],
        weights: Array | None = None,
        number: int = 0,
        accumulators: Sequence[Accumulator] = (),
    ) -> tuple[list[Array], list[Accumulator]]:
        """Runs the stage.

        Args:
          arrays: all parameters of the function.
          values: the values that the stage takes.
          weights: token weights, or None.
          number: the number of the batch.
          accumulators: one for each of `leaves`.
        """
        params = [arrays[i] for i in self.stage.params]
        consts, values = list(self.stage.consts), list(values)
        return self.run(consts, params, values, weights, number, list(accumulators))


@dataclass(frozen=True)
class _Compilable:
    """What a program is compiled from. It holds no arrays.

    Attributes:
      key: equal for alike stages; None for a stage that can't be compared.
      stage: one of them, without its constants.
      names: the path of each of its parameters.
      contractions: its products.
      matrices: the leaves whose inputs are accumulated.
      forward: whether the values that the next stage takes are returned.
    """

    key: Hashable
    stage: Stage = field(compare=False)
    names: tuple[str, ...] = field(compare=False)
    contractions: Mapping[Path, Sequence[Contraction]] = field(compare=False)
    matrices: Mapping[str, LayerMatrices] = field(compare=False)
    forward: bool = field(compare=False)


def stage_program(
    program: Program,
    stage: Stage,
    matrices: Mapping[str, LayerMatrices],
    *,
    forward: bool = True,
) -> StageProgram:
    """Returns the compiled program of a stage, the same for all that are alike.

    Args:
      program: the program that was split.
      stage: a stage of it.
      matrices: the leaves whose inputs are accumulated, in order.
      forward: whether to return the values that the next stage takes.
    """
    compilable = _compilable(program, stage, matrices, forward=forward)
    compile_stage = _compile if compilable.key is None else _compile_alike
    return StageProgram(stage, tuple(matrices), compile_stage(compilable))


def _compilable(
    program: Program,
    stage: Stage,
    matrices: Mapping[str, LayerMatrices],
    *,
    forward: bool = True,
) -> _Compilable:
    paths = list(program.arrays)
    within = {id(eqn) for eqn in stage.jaxpr.eqns}
    compilable = _Compilable(
        None,
        stage._replace(consts=[None for _ in stage.consts]),
        tuple(paths[i] for i in stage.params),
        {
            path: contractions
            for path, contractions in program.record.contractions.items()
            if path[0].identity in within
        },
        matrices,
        forward,
    )
    try:
        return replace(compilable, key=_key(compilable))
    except NotAlikeError:
        return compilable


def _key(compilable: _Compilable) -> Hashable:
    stage, matrices = compilable.stage, compilable.matrices
    index = {name: i for i, name in enumerate(compilable.names)}
    by_equation = {}
    for path, contractions in compilable.contractions.items():
        by_equation.setdefault(path[0].identity, []).append((path, contractions))

    def note(eqn: JaxprEqn) -> Hashable:
        """Returns how the products of an equation show the parameters of the stage."""
        views = []
        for path, contractions in by_equation.get(id(eqn), ()):
            for contraction in contractions:
                view = contraction.view
                if view.leaf not in matrices:
                    continue
                # Views inside of loops refer to equations.
                if len(path) > 1 or view.leaf not in index:
                    raise NotAlikeError
                view = replace(view, leaf=str(index[view.leaf]))
                views.append(contraction._replace(view=view))
        return tuple(views)

    leaves = tuple((index.get(path), leaf) for path, leaf in matrices.items())
    return stage_key(stage, note), leaves, compilable.forward


def _compile(compilable: _Compilable) -> Callable[..., Any]:
    stage, matrices = compilable.stage, compilable.matrices

    @partial(jax.jit, donate_argnums=5)
    def run(consts, params, values, weights, number, accumulators):
        rule = observer_rule(compilable.contractions, matrices, weights, number)
        observed = [
            factored(name, x) if name in matrices and matrices[name].scaled else x
            for name, x in zip(compilable.names, params, strict=True)
        ]
        by_path = dict(zip(matrices, accumulators, strict=True))
        bound = stage.bind(consts)
        outputs, by_path = evaluate(bound, [*observed, *values], rule, by_path)
        passed_on = outputs[stage.num_products :] if compilable.forward else []
        return passed_on, [by_path[path] for path in matrices]

    return run


#: Programs that were compiled, by their key. Neither they nor their keys hold arrays:
#: constants are arguments, and stages whose equations hold functions have no key.
_compile_alike = lru_cache(maxsize=512)(_compile)


class CutProgram(NamedTuple):
    """A program cut into stages.

    Attributes:
      entry: the indices of its inputs that the first stage takes.
      stages: the stages, of which many are alike.
    """

    entry: list[int]
    stages: list[StageProgram]


def cut_program(program: Program, matrices: Mapping[str, LayerMatrices]) -> CutProgram:
    """Cuts a program so that little has to be compiled.

    Args:
      program: a program without calls.
      matrices: the leaves whose inputs are accumulated.
    """
    products = products_of(program, matrices)
    of_products: dict[int, dict[str, LayerMatrices]] = {i: {} for i in products}
    index = {id(eqn): i for i, eqn in enumerate(program.bound.jaxpr.eqns)}
    # Factors that depend on the inputs are followed within a stage only.
    varies = False
    for path, contractions in program.record.contractions.items():
        for contraction in contractions:
            leaf = contraction.view.leaf
            if leaf in matrices:
                of_products[index[path[0].identity]][leaf] = matrices[leaf]
                varies |= contraction.view.varies

    def cut(groups: Sequence[Sequence[int]]) -> tuple[list[int], list[Any]]:
        """Returns the entry, and each stage with its leaves."""
        entry, stages = split_program(program, groups)
        leaves = [
            {leaf: x for i in group for leaf, x in of_products[i].items()}
            for group in groups
        ]
        return entry, [*zip(stages, leaves, strict=True)]

    starts = [0]
    if not varies:
        _, single = cut([[i] for i in products])
        keys = [_compilable(program, *part).key for part in single]
        starts = _starts([object() if key is None else key for key in keys])
    ends = [*starts[1:], len(products)]
    entry, parts = cut([products[a:b] for a, b in zip(starts, ends, strict=True)])
    return CutProgram(entry, [stage_program(program, *part) for part in parts])


def _starts(kinds: Sequence[Hashable]) -> list[int]:
    """Returns where to cut a sequence so that few different kinds of parts arise.

    It is cut before each element of one kind, if that halves the number of elements in
    different parts.
    """
    best, fewest = [0], len(kinds) // 2
    for kind in dict.fromkeys(kinds):
        starts = sorted({0, *(i for i, other in enumerate(kinds) if other == kind)})
        ends = [*starts[1:], len(kinds)]
        parts = {tuple(kinds[a:b]) for a, b in zip(starts, ends, strict=True)}
        size = sum(map(len, parts))
        if (size, len(starts)) < (fewest, len(best)):
            best, fewest = starts, size
    return best
