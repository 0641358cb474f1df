"""Language models as chains of stages, each a function of its own tensors."""

import re
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


#: The arrays of a stage by their names in it.
Params = Mapping[str, Array]
#: What goes from block to block, and what the last stage returns.
Features = Float[Array, "batch token feature"]
Logits = Float[Array, "batch token logit"]
#: `(params, x) -> x`.
StageFunction = Callable[[Params, Array], Array]


class Tensor(NamedTuple):
    """A tensor of a model.

    Attributes:
      name: its name in the file.
      shape: the shape that the configuration gives it.
      inputs: for the weight of a matmul the axis of its inputs, else None.
    """

    name: str
    shape: tuple[int, ...]
    inputs: int | None = None


class Stage(NamedTuple):
    """A part of a model.

    Attributes:
      name: its name.
      tensors: its tensors by their names in the stage, the same in equal stages.
      fn: `fn(params, x) -> x`, where `params` has the arrays of `tensors`. Stages that
        compute the same share one function.
    """

    name: str
    tensors: Mapping[str, Tensor]
    fn: StageFunction


def block_stage(
    name: str,
    tensors: Mapping[str, Tensor],
    fn: StageFunction,
) -> Stage:
    """Returns a stage whose tensors have its name and their names in it."""
    named = {k: x._replace(name=f"{name}.{k}") for k, x in tensors.items()}
    return Stage(name, named, fn)


class LanguageModel(NamedTuple):
    """A causal language model. Its parts compute in float32, or wider if weights are.

    Attributes:
      model_type: the name of the architecture.
      vocab: the number of token ids.
      positions: the length of the longest sequence.
      embed: from token ids `(batch, length)` to features `(batch, length, width)`.
      blocks: from features to features.
      head: from features to logits `(batch, length, vocab)`. If the file has no output
        layer, the weight of its matmul is missing, and it cannot be run.
    """

    model_type: str
    vocab: int
    positions: int
    embed: Stage
    blocks: tuple[Stage, ...]
    head: Stage

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages in order."""
        return self.embed, *self.blocks, self.head

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by their names in the file."""
        stages = (stage.tensors.values() for stage in self.stages)
        return {tensor.name: tensor for tensor in chain.from_iterable(stages)}


#: Tensors that older checkpoints have besides the weights; they follow from the sizes.
_BUFFERS = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|attn\.(masked_)?bias)")


def check_tensors(model: LanguageModel, specs: Mapping[str, Any]) -> None:
    """Checks that a file has the tensors of a model, and no others.

    Args:
      model: the model.
      specs: the shape and dtype of each tensor of the file by name.

    Raises:
      ValueError: a tensor is missing, has another shape, is no float, or is not used.
    """
    tensors = model.tensors
    for name, tensor in tensors.items():
        if name not in specs:
            raise ValueError(
                f"there is no tensor {name!r} of shape {tensor.shape}, which "
                f"config.json implies for model_type {model.model_type!r}"
            )
        spec = specs[name]
        if tuple(spec.shape) != tensor.shape:
            raise ValueError(
                f"tensor {name!r} has shape {tuple(spec.shape)}, but config.json "
                f"implies {tensor.shape}"
            )
        if not jnp.issubdtype(spec.dtype, jnp.floating):
            raise ValueError(
                f"tensor {name!r} has dtype {spec.dtype}: only floats can be calibrated"
            )
    for name in specs:
        if name not in tensors and not _BUFFERS.fullmatch(name):
            raise ValueError(
                f"tensor {name!r} is not used by the forward pass of model_type "
                f"{model.model_type!r}, as config.json describes it"
            )
