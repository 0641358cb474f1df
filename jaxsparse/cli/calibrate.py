"""Calibrated pruning of the folder of a language model, and what it cost."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxsparse._calibration import PrunedStage, SparseGPTSearcher, WandaSearcher
from jaxsparse._files import SparseFileError
from jaxsparse._language_models import LanguageModel, Stage
from jaxsparse._plans import Plan
from jaxsparse._reports import LeafError, calibration_report
from jaxsparse.cli.leaves import Leaves
from jaxsparse.cli.method import Data, Method
from jaxsparse.cli.model_stages import open_model, prune_stages
from jaxsparse.cli.tokens import Tokens, load_tokens


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
    try:
        model = open_model(leaves)
        _check_plan(plan, model)
    except SparseFileError:
        raise
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
    errors: dict[str, LeafError] = {}

    def report(stage: Stage, pruned: PrunedStage) -> None:
        for leaf in calibration_report(pruned.params, pruned.result, pruned.statistics):
            name = stage.tensors[leaf.path].name
            errors[name] = leaf
            store(name, np.asarray(pruned.result.params[leaf.path]))

    prune_stages(
        leaves,
        plan,
        calibration.model,
        calibration.tokens.ids,
        WandaSearcher if calibration.method is Method.wanda else SparseGPTSearcher,
        report,
        verbose=verbose,
    )
    return errors


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
