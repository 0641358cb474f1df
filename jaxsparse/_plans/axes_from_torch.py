"""Axes of a leaf from the names that PyTorch and Hugging Face give to parameters.

A weight is `(out, in)`, and a convolution's `(out, in, height, width)`, so groups lie
along axis 1. Every layer's name ends in `.weight`: the module's name distinguishes an
embedding from a linear layer, and if it does not, the leaf is ambiguous.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxsparse._plans.leaf_axes import LeafAxes
from jaxsparse._plans.roles_from_names import roles_from_names
from jaxsparse._trace import Role


_HEADS = {
    *("head", "heads", "lm_head", "mlm_head", "logits", "embed_out", "output_layer"),
    *("classifier", "score", "qa_outputs", "predictions"),
}
#: Names of output layers that are heads only as outermost modules.
_OUTER_HEADS = {"fc", "output", "proj_out"}

_EMBEDDING = re.compile(
    r"wte|wpe|shared|relative_attention_bias"
    r"|(.*_)?(emb|embed|embedder|embedding)s?(_\d+)?"
    r"|embed(ding)?_(in|table|tokens?(_per_layer)?|positions?)",
    re.IGNORECASE,
)
#: Names of weights; PyTorch's recurrent and attention modules have their own.
_WEIGHT = re.compile(
    r"weight|in_proj_weight|[qkv]_proj_weight|weight_[ih]h_l\d+(_reverse)?"
)
#: Names of transposed convolutions, whose weights are `(in, out, ...)`.
TRANSPOSED = re.compile("transpose|deconv|upconv", re.IGNORECASE)
#: Layers that are `(in, out)` in GPT-2 and `(out, in)` in other models.
_TRANSPOSED_IN_GPT2 = {"c_attn", "c_fc", "c_proj", "q_attn"}


def axes_from_torch_names(
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, LeafAxes]:
    """Returns the axes of every leaf, from paths (with dots or slashes) and shapes."""
    roles = roles_from_names(shapes, _HEADS, _OUTER_HEADS)
    return {
        path: replace(_leaf_axes(path, shape, shapes, roles), role=roles.get(path))
        for path, shape in shapes.items()
    }


def is_embedding(path: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Returns whether a leaf is a matrix without a bias in a module named embedding."""
    *modules, _ = _parts(path)
    named = bool(modules) and _EMBEDDING.fullmatch(modules[-1]) is not None
    return named and len(shapes[path]) == 2 and _bias_of(path, shapes) is None


def refuse_tensors(leaves: Mapping[str, Any]) -> None:
    """Raises `TypeError` for PyTorch tensors, whose methods are not NumPy's."""
    for path, leaf in leaves.items():
        if type(leaf).__module__.split(".")[0] == "torch":
            raise TypeError(
                f"leaf {path!r} of shape {tuple(leaf.shape)} is a PyTorch tensor: "
                "give {name: x.numpy() for name, x in state.items()}, or, for "
                "bfloat16, save it with safetensors and open it with open_torch"
            )


def _leaf_axes(
    path: str,
    shape: tuple[int, ...],
    shapes: Mapping[str, tuple[int, ...]],
    roles: Mapping[str, Role],
) -> LeafAxes:
    *modules, name = _parts(path)
    module = modules[-1] if modules else ""
    rank = len(shape)
    if rank < 2 or name == "bias":
        return LeafAxes(reason="bias, norm or scalar")
    if is_embedding(path, shapes):
        return LeafAxes(reason="embedding")
    if not _WEIGHT.fullmatch(name) or rank > 5:
        return _ambiguous(f"{name!r} of rank {rank}")
    bias = _bias_of(path, shapes)
    if rank == 2 and module in _TRANSPOSED_IN_GPT2:
        match _inputs_first(shapes):
            case None:
                return _ambiguous(f"{module!r} is (in, out) in GPT-2")
            case True:
                return LeafAxes(group=0, contracted=(0,), output=(1,))
    if rank == 2 and bias is None and path not in roles and "emb" in module.lower():
        return _ambiguous(f"{module!r} may be an embedding")
    if rank > 2 and TRANSPOSED.search(path):
        return _ambiguous("a transposed convolution may be (in, out, ...)")
    if bias not in (None, shape[:1]):
        return _ambiguous(f"its bias has shape {bias}, axis 0 has size {shape[0]}")
    if rank > 2 and shape[1] == 1:
        reason = "depthwise convolution or one input channel"
        return LeafAxes(contracted=(1,), output=(0,), reason=reason)
    return LeafAxes(group=1, contracted=(1,), output=(0,))


def _inputs_first(shapes: Mapping[str, tuple[int, ...]]) -> bool | None:
    """Returns whether GPT-2's layers are `(in, out)`; None if biases do not decide."""
    votes = set()
    for path, shape in shapes.items():
        *modules, name = _parts(path)
        bias = _bias_of(path, shapes)
        if name != "weight" or not modules or modules[-1] not in _TRANSPOSED_IN_GPT2:
            continue
        if bias and len(shape) == 2 and shape[0] != shape[1]:
            votes.add((shape[1],) == bias)
    return votes.pop() if len(votes) == 1 else None


def _bias_of(
    path: str, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...] | None:
    return shapes.get(path.removesuffix("weight") + "bias")


def _parts(path: str) -> list[str]:
    return re.split(r"[./]", path)


def _ambiguous(what: str) -> LeafAxes:
    return LeafAxes(reason=f"ambiguous: {what}", remedy="axis")
