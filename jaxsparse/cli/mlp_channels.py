"""The hidden channels of MLPs in Hugging Face's files, by the names of tensors."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxsparse._channels import ChannelGroup, ChannelMember, ChannelRole


class _Naming(NamedTuple):
    """How the tensors of an MLP are named.

    Attributes:
      first: the layers that give the hidden channels, joined by `|`.
      last: the layer that takes them in.
      is_transposed: whether weights are `(in, out)`, as in GPT-2, not `(out, in)`.
    """

    first: str
    last: str
    is_transposed: bool = False


_NAMINGS = (
    _Naming(r"mlp\.gate_proj|mlp\.up_proj", "mlp.down_proj"),  # Llama, Mistral, Qwen
    _Naming(r"mlp\.c_fc", "mlp.c_proj", is_transposed=True),  # GPT-2
    _Naming(r"intermediate\.dense", "output.dense"),  # BERT, ViT
    _Naming(r"mlp\.fc1", "mlp.fc2"),  # SigLIP, CLIP, Phi
)


class MLP(NamedTuple):
    """The MLP of one layer.

    Attributes:
      name: the prefix of its tensors.
      tensors: the names of its tensors that have hidden channels.
      group: its hidden channels.
    """

    name: str
    tensors: tuple[str, ...]
    group: ChannelGroup


def find_mlps(specs: Mapping[str, Any]) -> list[MLP]:
    """Returns the MLPs of a file, found by the names of its tensors.

    Args:
      specs: objects with the shape of each tensor, by name.

    Raises:
      ValueError: there is none, or the tensors of one do not fit together.
    """
    mlps: list[MLP] = []
    for naming in _NAMINGS:
        last = re.compile(rf"(.*\.)?{re.escape(naming.last)}\.weight")
        for name in specs:
            if last.fullmatch(name):
                prefix = name.removesuffix(f"{naming.last}.weight")
                mlps += _mlp(prefix, naming, specs)
    if not mlps:
        raise ValueError(
            "no tensors are named like the MLPs of Llama, GPT-2, BERT or ViT: in "
            "Python, jaxsparse.shrink_params finds the channels of any model"
        )
    return mlps


def _mlp(prefix: str, naming: _Naming, specs: Mapping[str, Any]) -> list[MLP]:
    """Returns the MLP with a prefix, or nothing if it has no first layer.

    `output.dense` also ends attention in BERT, which has no `intermediate.dense`.
    """
    first = re.compile(rf"{re.escape(prefix)}({naming.first})\.(weight|bias)")
    named = [name for name in specs if first.fullmatch(name)]
    if not named:
        return []
    last = f"{prefix}{naming.last}.weight"
    inputs, outputs = (0, 1) if naming.is_transposed else (1, 0)
    size = specs[last].shape[inputs]
    members = [_member(last, specs[last].shape, inputs, "input")]
    for name in named:
        shape = specs[name].shape
        axis, role = (outputs, "output") if len(shape) > 1 else (0, "elementwise")
        if len(shape) > 2 or shape[axis] != size:
            raise ValueError(
                f"tensor {name!r} of shape {shape} does not give the {size} channels "
                f"that {last!r} of shape {specs[last].shape} takes in"
            )
        members.append(_member(name, shape, axis, role))
    group = ChannelGroup(size, (), tuple(members), fixed="", kept="")
    return [MLP(prefix, (last, *named), group)]


def _member(
    path: str, shape: tuple[int, ...], axis: int, role: ChannelRole
) -> ChannelMember:
    slices = tuple((0, size) for size in shape)
    return ChannelMember(path, slices, shape, axis, (), axis, role)
