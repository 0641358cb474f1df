"""Roles of leaves from their names: output layers, routers and low-rank adapters."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from jaxsparse._plans.leaf_axes import LeafAxes
from jaxsparse._plans.rule import Rule
from jaxsparse._trace import Role


#: The factors of LoRA, LoKr and LoHa, in the names of PEFT, Flax, Qwix and Diffusers.
_ADAPTER = re.compile(
    r"(^|[/._])(lora[/._]?(embedding[/._]?)?(a|b|down|mid|up)|(lokr|hada)_[tw]\d[ab_]*)"
    r"\d*($|[/._])",
    re.IGNORECASE,
)
_ROUTER = re.compile(r".*router.*|shared_experts?_gate", re.IGNORECASE)
#: Names of routers that gated layers have too: beside experts they are routers.
_GATE = re.compile(
    r"((moe|expert|top_?k|w)_)?(gate|gating)(_(fn|layer|network|w))?", re.IGNORECASE
)
_EXPERTS = re.compile(r".*experts?(_?\d+)?", re.IGNORECASE)
_MIXTURE = re.compile(r".*(moe|mixture_?of_?experts).*", re.IGNORECASE)
#: Layers of one attention head, which tutorials keep in a list named `heads`.
_ATTENTION = re.compile(r"(q|k|v|qkv|query|key|value)(_proj)?|c_attn|in_proj")
_NUMBERED = re.compile(r"(.*_)?\d+")


def roles_from_names(
    shapes: Mapping[str, tuple[int, ...]],
    heads: Collection[str],
    outer_heads: Collection[str] = (),
) -> dict[str, Role]:
    """Returns the role of each matrix or kernel whose names tell one.

    Args:
      shapes: the shapes of the leaves by path, with dots or slashes.
      heads: names of output layers, in lower case.
      outer_heads: names of output layers if no module is around them.
    """
    kernels = {
        path: tuple(re.split(r"[./]", path))
        for path, shape in shapes.items()
        if len(shape) > 1
    }
    # A path without its last name is that of the modules around a leaf.
    around = Counter(
        parts[:i] for parts in kernels.values() for i in range(1, len(parts))
    )
    mixtures = {
        parts[:i]
        for parts in kernels.values()
        for i, part in enumerate(parts)
        if _EXPERTS.fullmatch(part) or (i and _MIXTURE.fullmatch(parts[i - 1]))
    }
    routed = {
        parts[:i]
        for parts in kernels.values()
        for i, part in enumerate(parts)
        if _ROUTER.fullmatch(part)
    }
    gated = mixtures - routed
    roles: dict[str, Role] = {}
    for path, parts in kernels.items():
        is_gate = len(shapes[path]) == 2 and any(
            _GATE.fullmatch(part) and parts[:i] in gated and _is_own_layer(parts, i)
            for i, part in enumerate(parts)
        )
        if _ADAPTER.search(path):
            roles[path] = "adapter"
        elif is_gate or any(
            _ROUTER.fullmatch(part) and _is_own_layer(parts, i)
            for i, part in enumerate(parts)
        ):
            roles[path] = "router"
        elif (len(parts) == 2 and parts[0] in outer_heads) or any(
            part.lower() in heads and _is_head(parts, i, around, len(kernels))
            for i, part in enumerate(parts[:-1])
        ):
            roles[path] = "head"
    return roles


def names_lack_head(axes: Mapping[str, LeafAxes], rules: Sequence[Rule]) -> bool:
    """Returns whether names show no output layer and rules do not select layers.

    Rules select layers if they keep one dense that has a group axis: then the user
    decided which.
    """
    if any(leaf.role == "head" for leaf in axes.values()):
        return False
    patterns = [
        next((rule.pattern for rule in rules if rule.matches(path)), None)
        for path, leaf in axes.items()
        if leaf.group is not None
    ]
    return None not in patterns


def _is_head(
    parts: tuple[str, ...],
    index: int,
    around: Mapping[tuple[str, ...], int],
    num_kernels: int,
) -> bool:
    """Returns whether a leaf below a module named as a head belongs to the head.

    It does not if a whole model is below that module: a stack of blocks, or all of the
    tree. A list of heads may hold layers of attention instead.
    """
    is_list = parts[index].lower() == "heads"
    if is_list and _ATTENTION.fullmatch(parts[-2]):
        return False
    below = around[parts[: index + 1]]
    if below > 1 and below == num_kernels and not is_list:
        return False
    return _is_own_layer(parts, index + (is_list and parts[index + 1].isdigit()))


def _is_own_layer(parts: tuple[str, ...], index: int) -> bool:
    """Returns whether a leaf is one of a few layers of a module, not of its blocks."""
    below = parts[index + 1 : -1]
    blocks = any(map(_NUMBERED.fullmatch, below[:-1]))
    return len(below) <= 2 and not blocks and not any(map(_EXPERTS.fullmatch, below))
