"""The channels within the blocks of a model, in the order with which n:m keeps most.

What goes from block to block keeps its order, so a block is permuted on its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsparse._channels import (
    Move,
    PermutationResult,
    PermutedGroup,
    can_permute,
    find_groups,
    move_leaf,
    moves_of,
    permute_channels,
)
from jaxsparse._files import SparseFileError
from jaxsparse._language_models import LanguageModel, Stage
from jaxsparse._plans import Plan
from jaxsparse._trees import percent_text
from jaxsparse.cli.leaves import Leaves
from jaxsparse.cli.method import Method
from jaxsparse.cli.model_stages import (
    load_stage,
    model_precision,
    open_model,
    stage_plan,
)
from jaxsparse.cli.progress import progress


#: The function of a block is verified on so many random vectors in a row.
_TOKENS = 16


class Permuted(NamedTuple):
    """The permuted channels of a model.

    Attributes:
      gains: what each group of channels gains, whose leaves have their names in the
        file.
      moves: the moves in each tensor, by its name.
    """

    gains: tuple[PermutedGroup, ...]
    moves: Mapping[str, Sequence[Move]]

    def of(self, name: str, tensor: np.ndarray) -> np.ndarray:
        """Returns a tensor with its channels permuted."""
        return np.asarray(move_leaf(tensor, self.moves.get(name, ())))


def open_blocks(leaves: Leaves, plan: Plan) -> LanguageModel:
    """Returns the model of a folder, in whose blocks channels can be permuted.

    Raises:
      ValueError: FILE is no folder, the model is not one of those that can be run, or
        n:m pruning keeps the same in any order.
    """
    python = "in Python, jaxsparse.permute_channels permutes the channels of any model"
    if leaves.kind != "folder":
        raise ValueError(
            f"{leaves.path} must be the folder of a Hugging Face model for --permute, "
            f"which runs the model that its config.json describes: {python}"
        )
    try:
        model = open_model(leaves)
    except SparseFileError:
        raise
    except ValueError as error:
        raise ValueError(f"{leaves.path}: {error}; {python}") from error
    shapes = {
        name: jax.ShapeDtypeStruct(spec.shape, spec.dtype)
        for name, spec in leaves.specs.items()
    }
    x = _features(model, shapes)
    for stage in model.blocks:
        params = {key: shapes[tensor.name] for key, tensor in stage.tensors.items()}
        if can_permute(find_groups(stage.fn, params, (x,)), stage_plan(stage, plan)):
            return model
    raise ValueError(
        "--permute would change nothing: no tensor that is pruned takes in channels "
        "within a block, such as the hidden ones of an MLP, in groups of n:m"
    )


def permute_blocks(
    leaves: Leaves, plan: Plan, model: LanguageModel, *, verbose: bool
) -> Permuted:
    """Permutes channels by magnitudes, with one block in memory.

    Each block is run before and after on random vectors, to verify it.

    Raises:
      ValueError: the function of a block changed; weights are not finite.
    """
    x = _features(model, leaves.specs)
    sizes = {stage.name: _bytes(stage, leaves) for stage in model.blocks}
    gains: list[PermutedGroup] = []
    moves: dict[str, Sequence[Move]] = {}
    with model_precision(leaves), progress(sizes, "permute", verbose=verbose) as step:
        vectors = jax.random.normal(jax.random.key(0), x.shape, x.dtype)
        for stage in model.blocks:
            step(stage.name)
            params, own = load_stage(stage, leaves), stage_plan(stage, plan)
            groups = find_groups(stage.fn, params, (vectors,))
            if can_permute(groups, own):
                result = permute_channels(
                    params, own, stage.fn, (vectors,), groups=groups
                )
                gains += gains_of(stage, result)
                moves |= _moves(stage, result)
    return Permuted(tuple(gains), moves)


def gains_of(stage: Stage, result: PermutationResult) -> Iterator[PermutedGroup]:
    """Yields what permuted channels of a stage gain, with the names in the file."""
    for gain in result.gains.values():
        if not gain.reason:
            names = tuple(stage.tensors[key].name for key in gain.leaves)
            yield gain._replace(leaves=names)


def gain_line(gains: Sequence[PermutedGroup], method: Method, *, is_done: bool) -> str:
    """Returns a line about what permuting gains, or about what is to be done."""
    if not gains:
        return "the channels of each block would be permuted before it is pruned"
    scores = "magnitudes" if method is Method.magnitude else "Wanda's scores"
    before, after = (
        percent_text(float(np.mean([getattr(gain, name) for gain in gains])))
        for name in ("before", "after")
    )
    return (
        f"{'' if is_done else 'would have '}permuted {len(gains)} groups of channels: "
        f"the tensors that take them in keep {after} of {scores} on average, instead "
        f"of {before}"
    )


def gains_as_json(gains: Sequence[PermutedGroup]) -> list[dict[str, Any]]:
    """Returns what each group of channels gains, as for JSON."""
    return [
        {
            "leaves": list(gain.leaves),
            "before": gain.before,
            "after": gain.after,
            "rows": gain.rows,
        }
        for gain in gains
    ]


def _features(model: LanguageModel, specs: Mapping[str, Any]) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of what a block takes in."""
    params = {
        key: jax.ShapeDtypeStruct(specs[x.name].shape, specs[x.name].dtype)
        for key, x in model.embed.tensors.items()
    }
    tokens = jax.ShapeDtypeStruct((1, min(_TOKENS, model.positions)), np.int32)
    return jax.eval_shape(model.embed.fn, params, tokens)


def _bytes(stage: Stage, leaves: Leaves) -> int:
    return sum(leaves.bytes_of[tensor.name] for tensor in stage.tensors.values())


def _moves(stage: Stage, result: PermutationResult) -> dict[str, Sequence[Move]]:
    moves = moves_of(result.groups, result.permutations)
    return {stage.tensors[key].name: of_tensor for key, of_tensor in moves.items()}
