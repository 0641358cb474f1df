"""Calibrated pruning of the folder of a language model, one stage in memory."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxsparse._calibration import (
    ChainStage,
    SparseGPTSearcher,
    WandaSearcher,
    prune_chain,
)
from jaxsparse._files import SparseFileError, parse_object
from jaxsparse._language_models import (
    LanguageModel,
    Stage,
    check_tensors,
    language_model,
)
from jaxsparse._plans import Plan
from jaxsparse._reports import LeafError, calibration_report
from jaxsparse.cli.console import print_note
from jaxsparse.cli.leaves import Leaves, x64_if_needed
from jaxsparse.cli.method import Data, Method
from jaxsparse.cli.progress import progress
from jaxsparse.cli.tokens import Tokens, load_tokens


#: How many tokens run through the model at once, unless one sequence has more.
_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Calibration:
    """Everything that calibrated pruning needs.

    Attributes:
      method: wanda or sparsegpt.
      model: the model.
      tokens: what it reads.
    """

    method: Method
    model: LanguageModel
    tokens: Tokens

    def as_json(self) -> dict[str, Any]:
        """Returns what the model reads, as for JSON."""
        samples, length = self.tokens.ids.shape
        return {
            "file": str(self.tokens.path),
            "samples": samples,
            "length": length,
            "tokens": samples * length,
            "seed": self.tokens.seed,
        }


def open_calibration(
    leaves: Leaves, plan: Plan, method: Method, data: Data
) -> Calibration:
    """Returns what calibrated pruning needs, and checks that it fits.

    Raises:
      ValueError: the model is not one of those that can be calibrated, the plan prunes
        a tensor without inputs, or the calibration data do not fit.
    """
    path = leaves.path / "config.json"
    try:
        text = path.read_bytes()
    except OSError as error:
        raise SparseFileError(path, error) from error
    try:
        model = language_model(parse_object(path, text), leaves.specs)
        check_tensors(model, leaves.specs)
        _check_plan(plan, model)
    except ValueError as error:
        remedy = "--method magnitude runs no model"
        raise ValueError(f"{leaves.path}: {error}; {remedy}") from error
    return Calibration(method, model, load_tokens(data, leaves.path, model))


def _check_plan(plan: Plan, model: LanguageModel) -> None:
    """Raises unless all tensors that are pruned have inputs along their groups."""
    tensors = model.tensors
    for leaf in plan.sparse:
        tensor = tensors.get(leaf.path)
        if tensor is None or tensor.inputs is None:
            raise ValueError(
                f"tensor {leaf.path!r} of shape {leaf.shape} is planned "
                f"{leaf.decision!r}, but as an embedding it has no inputs to calibrate "
                "on: keep it dense"
            )
        if leaf.axis != tensor.inputs:
            raise ValueError(
                f"tensor {leaf.path!r} of shape {leaf.shape} is planned "
                f"{leaf.decision!r}, but its inputs are along axis {tensor.inputs}: "
                "correct the --rule or the --layout"
            )


def prune_calibrated(
    leaves: Leaves,
    plan: Plan,
    calibration: Calibration,
    store: Callable[[str, np.ndarray], None],
    *,
    verbose: bool,
) -> dict[str, LeafError]:
    """Prunes a model stage by stage, and returns the error of each pruned tensor.

    Args:
      leaves: the tensors of the model.
      plan: their plan.
      calibration: the method, the model and what it reads.
      store: called with the name of each pruned tensor and the tensor.
      verbose: whether a line is printed for each stage.

    Raises:
      ValueError: a tensor cannot be pruned; the error names it and its stage.
    """
    stages = _needed_stages(calibration.model, plan)
    chain = prune_chain(
        [_chain_stage(stage, leaves, plan) for stage in stages],
        _batches(calibration.tokens.ids),
        WandaSearcher() if calibration.method is Method.wanda else SparseGPTSearcher(),
    )
    itemsize = max(spec.dtype.itemsize for spec in leaves.specs.values())
    errors: dict[str, LeafError] = {}
    notes: dict[str, str] = {}
    work = {stage.name: _work(stage) for stage in stages}
    with (
        x64_if_needed(np.dtype(np.float64 if itemsize > 4 else np.float32)),
        jax.default_matmul_precision("highest"),
        progress(work, "calibrate", verbose=verbose) as step,
    ):
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
            if not pruned.statistics:
                continue
            report = calibration_report(pruned.params, pruned.result, pruned.statistics)
            for leaf in report:
                name = stage.tensors[leaf.path].name
                errors[name] = leaf
                store(name, np.asarray(pruned.result.params[leaf.path]))
    for text, name in notes.items():
        print_note(f"from {name} on: {text}")
    return errors


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
    """Returns a stage planned by the names in it, the same in equal blocks."""
    planned = (replace(plan[x.name], path=key) for key, x in stage.tensors.items())
    return ChainStage(stage.fn, Plan(tuple(planned)), partial(_load, stage, leaves))


def _load(stage: Stage, leaves: Leaves) -> dict[str, Array]:
    return {k: jnp.asarray(leaves.read(x.name)) for k, x in stage.tensors.items()}


def _work(stage: Stage) -> int:
    """Returns the number of weights in matmuls."""
    tensors = stage.tensors.values()
    return sum(math.prod(x.shape) for x in tensors if x.inputs is not None)


def _batches(ids: np.ndarray) -> list[Array]:
    """Returns sequences in batches, all of one size: each size would be compiled."""
    most = max(1, _BATCH_TOKENS // ids.shape[1])
    size = max(n for n in range(1, most + 1) if len(ids) % n == 0)
    return [jnp.asarray(ids[i : i + size]) for i in range(0, len(ids), size)]


def calibration_lines(
    calibration: Calibration, errors: Mapping[str, LeafError]
) -> list[str]:
    """Returns lines about the data and the errors, or about what is to be done."""
    method = calibration.method.value
    was = "was" if errors else "would be"
    lines = [f"{method} {was} calibrated on {calibration.tokens.describe()}"]
    if errors:
        mean = np.mean([leaf.error for leaf in errors.values()])
        magnitude = np.mean([leaf.magnitude_error for leaf in errors.values()])
        worst = max(errors, key=lambda name: errors[name].error)
        lines.append(
            f"relative error of outputs: {mean:.3f} on average, {magnitude:.3f} by "
            f"magnitude; at most {errors[worst].error:.3f}, of {worst}"
        )
    return lines
