"""Calibrated pruning of the folder of a language model, and what it cost."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxsparse._calibration import PrunedStage, SparseGPTSearcher, WandaSearcher
from jaxsparse._channels import PermutedGroup
from jaxsparse._files import SparseFileError
from jaxsparse._language_models import LanguageModel, Stage
from jaxsparse._plans import Plan
from jaxsparse._reports import LeafError, calibration_report
from jaxsparse.cli.leaves import Leaves
from jaxsparse.cli.method import Data, Method
from jaxsparse.cli.model_stages import open_model, prune_stages
from jaxsparse.cli.permute import gains_of
from jaxsparse.cli.tokens import Tokens, load_tokens


@dataclass(frozen=True)
class Calibration:
    """Everything that calibrated pruning needs.

    Attributes:
      method: wanda or sparsegpt.
      model: the model.
      tokens: what it reads.
      permute: whether channels are permuted, too.
    """

    method: Method
    model: LanguageModel
    tokens: Tokens
    permute: bool

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


class Calibrated(NamedTuple):
    """What calibrated pruning gave.

    Attributes:
      errors: the error of each pruned tensor, by name.
      gains: what each group of channels gained that was permuted.
      stored: the names of the tensors that changed.
    """

    errors: dict[str, LeafError]
    gains: list[PermutedGroup]
    stored: set[str]


def open_calibration(
    leaves: Leaves, plan: Plan, method: Method, data: Data, *, permute: bool
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
    return Calibration(method, model, load_tokens(data, leaves.path, model), permute)


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
) -> Calibrated:
    """Prunes a model stage by stage.

    Args:
      leaves: the tensors of the model.
      plan: their plan.
      calibration: the method, the model and what it reads.
      store: called with the name of each changed tensor and the tensor.
      verbose: whether a line is printed for each stage.

    Raises:
      ValueError: a tensor cannot be pruned; the error names it and its stage.
    """
    done = Calibrated({}, [], set())

    def report(stage: Stage, pruned: PrunedStage) -> None:
        keys = set()
        for leaf in calibration_report(pruned.params, pruned.result, pruned.statistics):
            done.errors[stage.tensors[leaf.path].name] = leaf
            keys.add(leaf.path)
        if pruned.permutation is not None:
            done.gains.extend(gains_of(stage, pruned.permutation))
            keys = set(stage.tensors)  # of dense tensors, too, channels moved
        for key in keys:
            store(stage.tensors[key].name, np.asarray(pruned.result.params[key]))
            done.stored.add(stage.tensors[key].name)

    prune_stages(
        leaves,
        plan,
        calibration.model,
        calibration.tokens.ids,
        WandaSearcher if calibration.method is Method.wanda else SparseGPTSearcher,
        report,
        permute=calibration.permute,
        verbose=verbose,
    )
    return done


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
