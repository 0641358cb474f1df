"""Batches on their way through the stages of a program."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Array

from jaxsparse._calibration.batches import (
    as_args,
    name_batch_in_errors,
    signature,
    token_weights,
    unpack,
)
from jaxsparse._calibration.stage_programs import stage_program
from jaxsparse._trace import (
    Program,
    Stage,
    inline_calls,
    order_stages,
    products_of,
    split_program,
    trace,
)
from jaxsparse._trees import PyTree


class SplitProgram(NamedTuple):
    """A program split into stages.

    Attributes:
      program: the whole program.
      entry: the indices of its inputs that the first stage takes.
      stages: the stages, and one more for what comes after the last product.
    """

    program: Program
    entry: list[int]
    stages: list[Stage]


class StageBatch(NamedTuple):
    """A batch of one stage.

    Attributes:
      key: what batches of one program have in common.
      values: the values that the stage takes.
      weights: token weights, or None.
    """

    key: Any
    values: list[Any]
    weights: Array | None


def enter_stages(
    fn: Callable[..., Any],
    params: PyTree,
    batches: Sequence[Any],
    stage_of: Mapping[str, int],
    weights: Callable[..., Array] | None,
) -> tuple[dict[Any, SplitProgram], list[list[str]], list[StageBatch]]:
    """Returns the programs of batches, the leaves of each stage, and the first inputs.

    Args:
      fn: a function `fn(params, *batch)`.
      params: its parameters.
      batches: the batches.
      stage_of: the number of the stage of each leaf.
      weights: token weights, as for `collect_statistics`.

    Raises:
      ValueError: a leaf is contracted inside a loop, or stages overlap.
    """
    with name_batch_in_errors(0, batches[0]):
        program = inline_calls(trace(fn, params, as_args(batches[0])))
        stages = order_stages(program, stage_of)
    programs = {signature(batches[0]): _split(program, stages)}
    carried = []
    for number, batch in enumerate(batches):
        with name_batch_in_errors(number, batch):
            key = signature(batch)
            if key not in programs:
                program = inline_calls(trace(fn, params, as_args(batch)))
                order_stages(program, stage_of)  # raises if it has other products
                programs[key] = _split(program, stages)
            carried.append(_first_inputs(programs[key], key, batch, weights))
    return programs, stages, carried


def _split(program: Program, stages: Sequence[Sequence[str]]) -> SplitProgram:
    products = [products_of(program, leaves) for leaves in stages]
    return SplitProgram(program, *split_program(program, products, narrow=True))


def _first_inputs(
    program: SplitProgram,
    key: Any,
    batch: Any,
    weights: Callable[..., Array] | None,
) -> StageBatch:
    inputs, _ = unpack(as_args(batch))
    values = [inputs[i] for i in program.entry]
    return StageBatch(key, values, token_weights(weights, batch))


def run_stage(
    programs: Mapping[Any, SplitProgram],
    i: int,
    arrays: list[Any],
    carried: Sequence[StageBatch],
) -> list[StageBatch]:
    """Returns the batches after a stage.

    Args:
      programs: the programs, by the keys of their batches.
      i: the number of the stage.
      arrays: all parameters of the function.
      carried: the batches before it.
    """
    forward = {
        key: stage_program(program, stages[i], {})
        for key, (program, _, stages) in programs.items()
    }
    return [
        batch._replace(values=forward[batch.key](arrays, batch.values)[0])
        for batch in carried
    ]
