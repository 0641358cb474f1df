"""A folder of a model whose MLPs have fewer hidden channels."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsparse._calibration import PrunedStage
from jaxsparse._channels import ChannelGroups
from jaxsparse._files import spilled_tensors, write_model_folder
from jaxsparse._language_models import LanguageModel, Stage
from jaxsparse._masks import SearchResult
from jaxsparse._patterns import PerOutput
from jaxsparse._plans import Plan, Rule, plan_sparsity
from jaxsparse._shrinking import new_sizes, shrink_params
from jaxsparse.cli.leaves import Leaves, x64_if_needed
from jaxsparse.cli.mlp_channels import MLP, find_mlps
from jaxsparse.cli.model_stages import open_model, prune_stages, read_config
from jaxsparse.cli.progress import progress
from jaxsparse.cli.tokens import Tokens


#: The fields of a config.json that have the number of hidden channels; of GPT-2 the
#: second one, whose default is four times the width.
_FIELDS = ("intermediate_size", "n_inner")


class Smaller(NamedTuple):
    """What a folder becomes.

    Attributes:
      mlps: the MLPs.
      size: the number of hidden channels that each keeps.
      shapes: the new shapes of their tensors by name.
      config: the new fields of config.json.
    """

    mlps: list[MLP]
    size: int
    shapes: dict[str, tuple[int, ...]]
    config: dict[str, Any]


class Refit(NamedTuple):
    """What the layers that take channels in are refitted by.

    Attributes:
      model: the forward pass.
      tokens: what it reads.
    """

    model: LanguageModel
    tokens: Tokens


def plan_smaller(leaves: Leaves, sparsity: float, multiple_of: int) -> Smaller:
    """Returns what a folder becomes, without reading a tensor.

    Raises:
      ValueError: there are no MLPs, they have several sizes or another one than
        config.json, or no channel would go.
    """
    mlps = find_mlps(leaves.specs)
    sizes = {mlp.group.size for mlp in mlps}
    config = read_config(leaves.path)
    field = next((name for name in _FIELDS if name in config), None)
    if field is None and config.get("model_type") == "gpt2":
        field = "n_inner"
    if field is None or len(sizes) > 1:
        raise ValueError(
            f"{leaves.path}: the MLPs have {', '.join(map(str, sorted(sizes)))} hidden "
            f"channels, for which config.json has one of {' and '.join(_FIELDS)}: in "
            "Python, jaxsparse.shrink_params shrinks any model"
        )
    (before,) = sizes
    if config.get(field) not in (before, None):
        raise ValueError(
            f"config.json: {field} is {config[field]!r}, but the MLPs have {before} "
            "hidden channels"
        )
    groups = ChannelGroups((mlps[0].group,))
    size = new_sizes(groups, sparsity, None, multiple_of)[0]
    shapes = {
        member.path: tuple(
            size if axis == member.axis else n
            for axis, n in enumerate(leaves.specs[member.path].shape)
        )
        for mlp in mlps
        for member in mlp.group.members
    }
    return Smaller(mlps, size, shapes, config | {field: size})


def write_smaller(
    leaves: Leaves,
    smaller: Smaller,
    output: Path,
    refit: Refit | None,
    *,
    replace: bool,
    verbose: bool,
) -> None:
    """Writes the smaller folder."""
    with spilled_tensors(output.parent) as tensors:
        if refit is None:
            _shrink_by_magnitude(leaves, smaller, tensors.store, verbose=verbose)
        else:
            _shrink_in_order(leaves, smaller, refit, tensors.store, verbose=verbose)
        write_model_folder(
            leaves.path,
            leaves.headers,
            output,
            lambda name, x: tensors.read(name) if name in smaller.shapes else x,
            replace=replace,
            shapes=smaller.shapes,
            texts={"config.json": json.dumps(smaller.config, indent=2) + "\n"},
        )


def open_refit(leaves: Leaves, load: Callable[[LanguageModel], Tokens]) -> Refit:
    """Returns the forward pass of a folder and what it reads.

    Raises:
      ValueError: there is no forward pass for it, or the tokens do not fit.
    """
    try:
        model = open_model(leaves)
    except ValueError as error:
        remedy = "without --calibrate no model is run"
        raise ValueError(f"{leaves.path}: {error}; {remedy}") from error
    return Refit(model, load(model))


@dataclass(frozen=True)
class _Shrinker:
    """Takes hidden channels out of the MLPs of some tensors, as a searcher does."""

    size: int
    plan: Plan

    def search(self, params: Mapping[str, Any], statistics: Any = None) -> SearchResult:
        groups = ChannelGroups(tuple(mlp.group for mlp in find_mlps(params)))
        result = shrink_params(
            params, sizes={".*": self.size}, statistics=statistics, groups=groups
        )
        return SearchResult(result.params, None, self.plan)


def _shrink_by_magnitude(
    leaves: Leaves,
    smaller: Smaller,
    store: Callable[[str, np.ndarray], None],
    *,
    verbose: bool,
) -> None:
    """Shrinks one MLP after the other."""
    sizes = {
        mlp.name: sum(leaves.bytes_of[name] for name in mlp.tensors)
        for mlp in smaller.mlps
    }
    with progress(sizes, "shrink", verbose=verbose) as step:
        for mlp in smaller.mlps:
            step(mlp.name)
            with x64_if_needed(leaves.specs[mlp.tensors[0]].dtype):
                params = {name: leaves.read(name) for name in mlp.tensors}
                shrunk = _Shrinker(smaller.size, Plan(())).search(params)
            for name, tensor in shrunk.params.items():
                store(name, np.asarray(tensor))


def _shrink_in_order(
    leaves: Leaves,
    smaller: Smaller,
    refit: Refit,
    store: Callable[[str, np.ndarray], None],
    *,
    verbose: bool,
) -> None:
    """Shrinks each MLP by what it reads from the smaller ones before it."""
    measured = [
        Rule(re.escape(member.path), PerOutput(0.5), axis=member.axis, sizes=None)
        for mlp in smaller.mlps
        for member in mlp.group.members
        if member.role == "input"
    ]
    shapes = {
        name: jax.ShapeDtypeStruct(spec.shape, spec.dtype)
        for name, spec in leaves.specs.items()
    }
    plan = plan_sparsity(shapes, [*measured, Rule(".*", None)], layout="torch")

    def done(stage: Stage, shrunk: PrunedStage) -> None:
        for key, tensor in stage.tensors.items():
            if tensor.name in smaller.shapes:
                store(tensor.name, np.asarray(shrunk.result.params[key]))

    ids = refit.tokens.ids
    shrinker = partial(_Shrinker, smaller.size)
    prune_stages(leaves, plan, refit.model, ids, shrinker, done, verbose=verbose)
