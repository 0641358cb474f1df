"""The options that select what is pruned, and the plan that they make."""

import re
import shlex
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Annotated

import jax
import typer

from jaxsparse._compressed import is_compressed
from jaxsparse._plans import (
    ASP_SIZES,
    LeafPlan,
    NothingPrunableError,
    Plan,
    PlanError,
    Remedy,
    Rule,
    expression_meant,
    plan_sparsity,
)
from jaxsparse._trees import fold, shape_text, table
from jaxsparse.cli.leaves import Leaves


class Layout(Enum):
    """The framework whose names and layout a file uses."""

    torch = "torch"
    flax = "flax"


PatternOption = Annotated[
    str, typer.Option("--pattern", metavar="N:M", help="Weights kept of each group.")
]
LayoutOption = Annotated[
    Layout | None,
    typer.Option(
        "--layout",
        help="Weights are (out, in) in torch's layout and (in, out) in flax's. "
        "By default the names of the tensors decide.",
    ),
]
RuleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rule",
        metavar="REGEX=PATTERN",
        help="For the tensors whose whole name matches: n:m, n:m@AXIS or dense. The "
        "first rule that matches decides; --pattern is for the other tensors.",
    ),
]
AnySizeOption = Annotated[
    bool,
    typer.Option(
        "--any-size",
        help="Also prune tensors whose number of outputs is not divisible by 8 or of "
        "inputs by 16.",
    ),
]
HeadOption = Annotated[
    bool, typer.Option("--head", help="Also prune the output layer.")
]
RouterOption = Annotated[
    bool, typer.Option("--router", help="Also prune the routers of experts.")
]
AdapterOption = Annotated[
    bool, typer.Option("--adapter", help="Also prune low-rank adapters (LoRA).")
]


#: The options that are the remedies of plans.
_REMEDIES: Mapping[Remedy, str] = {
    "axis": "give --rule 'REGEX=2:4@AXIS'",
    "fn_or_axis": "give --rule 'REGEX=2:4@AXIS'",
    "rule_axis": "narrow the REGEX of its --rule or correct the AXIS",
    "rules": (
        "Give a --rule that matches a weight, --rule 'REGEX=2:4@AXIS' where names do "
        "not determine the axis, and --any-size where the size rule keeps it dense."
    ),
    "sizes": "give --any-size",
    "m": "give --rule 'REGEX=N:M' with another M",
    "block": "give --rule 'REGEX=N:M'",
    "held": "give a file of arrays",
    "head": "give --head",
    "router": "give --router",
    "adapter": "give --adapter",
}


def plan_leaves(
    leaves: Leaves,
    pattern: str,
    layout: Layout | None,
    rules: Sequence[str] | None,
    *,
    any_size: bool,
    head: bool,
    router: bool,
    adapter: bool,
) -> Plan:
    """Returns the plan for a file.

    The state of an optimizer stays dense: its moments are not weights. The axis of a
    tensor that is compressed is stored with it.

    Raises:
      ValueError: a rule is malformed or matches no tensor, names do not determine the
        layout, or no tensor would be pruned.
    """
    sizes = None if any_size else ASP_SIZES
    planned = [_rule(text, sizes) for text in rules or ()]
    for text, rule in zip(rules or (), planned, strict=True):
        if meant := expression_meant(rule.path, leaves.specs):
            pattern = text.rpartition("=")[2]
            raise ValueError(
                f"--rule {text!r} does not match the tensors of this name, because it "
                "is read as a regular expression: give --rule "
                f"{shlex.quote(f'{meant}={pattern}')}"
            )
        if not any(map(rule.matches, leaves.specs)):
            raise ValueError(
                f"--rule {text!r} matches none of the {len(leaves.specs)} tensors. It "
                "must match a whole name, such as "
                f"{next(iter(leaves.specs), None)!r}: write '.*' for anything"
            )
    state = Rule(r"(.*/)?opt_state/.*", None)
    if any(map(state.matches, leaves.specs)):
        planned.append(state)
    planned += _stored_axes(leaves, pattern)
    planned.append(Rule(".*", pattern, sizes=sizes))
    shapes = {
        name: jax.ShapeDtypeStruct(spec.shape, spec.dtype)
        for name, spec in leaves.specs.items()
    }
    layout = layout or _layout_of(leaves)
    try:
        plan = plan_sparsity(
            shapes,
            planned,
            layout=layout.value,
            dense_head=not head,
            dense_router=not router,
            dense_adapter=not adapter,
        )
    except NothingPrunableError as error:
        plan = error.plan.with_remedies(_REMEDIES)
        lines = table(("tensor", "shape", "plan"), fold(map(_row, plan.leaves)))
        text = f"nothing prunable:\n{lines}\n{_REMEDIES['rules']}"
        raise ValueError(text) from error
    except PlanError as error:
        raise ValueError(_describe(error, leaves, planned)) from error
    return plan.with_remedies(_REMEDIES)


def _stored_axes(leaves: Leaves, pattern: str) -> list[Rule]:
    """Returns rules for the tensors that are compressed: one for each axis."""
    names: dict[int, list[str]] = {}
    for name, spec in leaves.specs.items():
        if is_compressed(spec):
            names.setdefault(spec.axis, []).append(re.escape(name))
    return [
        Rule("|".join(of_axis), pattern, axis=axis, sizes=None)
        for axis, of_axis in names.items()
    ]


def _describe(error: PlanError, leaves: Leaves, rules: Sequence[Rule]) -> str:
    """Returns an error about a plan in the words of the command line."""
    if error.path is None or error.remedy is None:
        return error.describe(_REMEDIES)
    spec = leaves.specs[error.path]
    tensor = f"tensor {error.path!r} of shape {spec.shape}"
    axis = next(rule.axis for rule in rules if rule.matches(error.path))
    problem = f"a --rule gives axis {axis} to {tensor}, which has {spec.ndim} axes"
    return f"{problem}: {_REMEDIES[error.remedy]}"


def _row(leaf: LeafPlan) -> tuple[str, tuple[str, ...]]:
    return leaf.path, (shape_text(leaf.shape or ()), leaf.decision)


def _layout_of(leaves: Leaves) -> Layout:
    """Returns the layout that the names of the tensors imply."""
    names = {re.split(r"[./]", name)[-1] for name in leaves.specs}
    match "weight" in names, not names.isdisjoint({"embedding", "kernel"}):
        case True, False:
            return Layout.torch
        case False, True:
            return Layout.flax
        case False, False if any(map(is_compressed, leaves.specs.values())):
            return Layout.flax  # whose names tell nothing either
    raise ValueError(
        f"{leaves.path}: its names do not determine the layout: give --layout torch if "
        "weights are (out, in), or --layout flax if they are (in, out)"
    )


def _rule(text: str, sizes: tuple[int, int] | None) -> Rule:
    path, _, pattern = text.rpartition("=")
    parts = re.fullmatch(r"(.+?)(?:@(-?\d+))?", pattern)
    if not path or parts is None:
        raise ValueError(
            f"--rule {text!r} is not REGEX=PATTERN, such as '.*mlp.*=1:4', "
            "'.*experts.*=2:4@1' or '.*attn.*=dense'"
        )
    try:
        re.compile(path)
    except re.error as error:
        raise ValueError(
            f"--rule {text!r}: REGEX is a regular expression, which {path!r} is not: "
            f"{error}. If it is the name of a tensor, give --rule "
            f"{shlex.quote(f'{re.escape(path)}={pattern}')}"
        ) from error
    axis = None if parts[2] is None else int(parts[2])
    kept = None if parts[1] == "dense" else parts[1]
    return Rule(path, kept, axis=axis, sizes=sizes)
