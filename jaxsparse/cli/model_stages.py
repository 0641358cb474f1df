"""The folder of a language model, pruned stage by stage, one stage in memory."""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxsparse._calibration import ChainStage, PrunedStage, prune_chain
from jaxsparse._files import SparseFileError, parse_object
from jaxsparse._language_models import (
    LanguageModel,
    Stage,
    check_tensors,
    language_model,
)
from jaxsparse._masks import Searcher
from jaxsparse._plans import Plan
from jaxsparse.cli.console import print_note
from jaxsparse.cli.leaves import Leaves, x64_if_needed
from jaxsparse.cli.progress import progress


#: How many tokens run through the model at once, unless one sequence has more.
_BATCH_TOKENS = 4096


def open_model(leaves: Leaves) -> LanguageModel:
    """Returns the model of a folder.

    Raises:
      SparseFileError: its config.json cannot be read.
      ValueError: it is not one of those that can be calibrated.
    """
    model = language_model(read_config(leaves.path), leaves.specs)
    check_tensors(model, leaves.specs)
    return model


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the object of the config.json of a folder."""
    path = folder / "config.json"
    try:
        text = path.read_bytes()
    except OSError as error:
        raise SparseFileError(path, error) from error
    return parse_object(path, text)


def prune_stages(
    leaves: Leaves,
    plan: Plan,
    model: LanguageModel,
    ids: np.ndarray,
    searcher: Callable[[Plan], Searcher],
    done: Callable[[Stage, PrunedStage], None],
    *,
    permute: bool = False,
    verbose: bool,
) -> None:
    """Prunes a model stage by stage, each by what it reads from those before it.

    Args:
      leaves: the tensors of the model.
      plan: their plan.
      model: the model.
      ids: the token ids that it reads, of shape `(samples, length)`.
      searcher: makes the searcher of a plan; see `prune_chain`.
      done: called with each stage that had a tensor to prune, and what became of it.
      permute: whether channels are permuted first; see `prune_chain`.
      verbose: whether a line is printed for each stage.

    Raises:
      ValueError: a tensor cannot be pruned; the error names it and its stage.
    """
    stages = _needed_stages(model, plan)
    chain = prune_chain(
        [_chain_stage(stage, leaves, plan) for stage in stages],
        _batches(ids),
        searcher,
        permute=permute,
    )
    notes: dict[str, str] = {}
    work = {stage.name: _work(stage) for stage in stages}
    with model_precision(leaves), progress(work, "calibrate", verbose=verbose) as step:
        for stage in stages:
            step(stage.name)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    pruned = next(chain)
                except ValueError as error:
                    raise ValueError(f"in {stage.name}: {error}") from error
            for warning in caught:
                notes.setdefault(str(warning.message), stage.name)
            if pruned.statistics:
                done(stage, pruned)
    for text, name in notes.items():
        print_note(f"from {name} on: {text}")


@contextmanager
def model_precision(leaves: Leaves) -> Iterator[None]:
    """A context in which a model computes in float32, or float64 if weights are."""
    itemsize = max(spec.dtype.itemsize for spec in leaves.specs.values())
    dtype = np.dtype(np.float64 if itemsize > 4 else np.float32)
    with x64_if_needed(dtype), jax.default_matmul_precision("highest"):
        yield


def stage_plan(stage: Stage, plan: Plan) -> Plan:
    """Returns the plan of a stage by the names in it, the same in equal blocks."""
    planned = (replace(plan[x.name], path=key) for key, x in stage.tensors.items())
    return Plan(tuple(planned))


def load_stage(stage: Stage, leaves: Leaves) -> dict[str, Array]:
    """Reads the tensors of a stage, by their names in it."""
    return {k: jnp.asarray(leaves.read(x.name)) for k, x in stage.tensors.items()}


def _needed_stages(model: LanguageModel, plan: Plan) -> list[Stage]:
    """Returns the stages up to the last one that has a tensor to prune."""
    sparse = {leaf.path for leaf in plan.sparse}
    last = max(
        i
        for i, stage in enumerate(model.stages)
        if any(tensor.name in sparse for tensor in stage.tensors.values())
    )
    return [*model.stages[: last + 1]]


def _chain_stage(stage: Stage, leaves: Leaves, plan: Plan) -> ChainStage:
    load = partial(load_stage, stage, leaves)
    return ChainStage(stage.fn, stage_plan(stage, plan), load)


def _work(stage: Stage) -> int:
    """Returns the number of weights in matmuls."""
    tensors = stage.tensors.values()
    return sum(math.prod(x.shape) for x in tensors if x.inputs is not None)


def _batches(ids: np.ndarray) -> list[Array]:
    """Returns sequences in batches, all of one size: each size would be compiled."""
    most = max(1, _BATCH_TOKENS // ids.shape[1])
    size = max(n for n in range(1, most + 1) if len(ids) % n == 0)
    return [jnp.asarray(ids[i : i + size]) for i in range(0, len(ids), size)]
