"""Options that say what is to be pruned, and the plan that they make."""

import re
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from typing import Annotated

import jax
import typer

from jaxsparse._plans import (
    ASP_SIZES,
    Plan,
    Rule,
    plan_sparsity,
)
from jaxsparse.cli.leaves import Leaves


class Layout(Enum):
    """Whose names and layouts a file has."""

    torch = "torch"
    flax = "flax"


PatternOption = Annotated[
    str, typer.Option("--pattern", metavar="N:M", help="Weights kept of each group.")
]
LayoutOption = Annotated[
    Layout | None,
    typer.Option(
        "--layout",
        help="Weights are (out, in) in torch's, (in, out) in flax's layout. "
        "By default the leaves' names tell.",
    ),
]
RuleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rule",
        metavar="REGEX=PATTERN",
        help="For the leaves whose whole name matches: n:m, n:m@AXIS or dense. The "
        "first rule that matches decides, and all come before --pattern.",
    ),
]
AnySizeOption = Annotated[
    bool,
    typer.Option(
        "--any-size",
        help="Also leaves whose outputs do not divide by 8 or inputs by 16.",
    ),
]
HeadOption = Annotated[bool, typer.Option("--head", help="The output layer too.")]


#: What the library says of its arguments, and the option that does it here.
_REMEDIES = {
    r"pass (fn=, or )?Rule\(\.\.\., axis=\.\.\.\)": "give --rule 'REGEX=2:4@AXIS'",
    r"with fn=\.\.\. or axis=\.\.\.": "--rule 'REGEX=2:4@AXIS'",
    r"sizes=None": "--any-size",
    r"Rule\(.*, None\)": "--rule 'REGEX=dense'",
}


def plan_leaves(
    leaves: Leaves,
    pattern: str,
    layout: Layout | None,
    rules: Sequence[str] | None,
    *,
    any_size: bool,
    head: bool,
) -> Plan:
    """The plan for a file.

    The state of an optimizer stays dense: its moments are no weights.

    Raises:
      ValueError: a rule that is none or matches nothing, a layout that names do not
        tell, or nothing that can be pruned.
    """
    sizes = None if any_size else ASP_SIZES
    planned = [_rule(text, sizes) for text in rules or ()]
    for text, rule in zip(rules or (), planned, strict=True):
        if not any(map(rule.matches, leaves.specs)):
            raise ValueError(
                f"--rule {text!r} matches none of the {len(leaves.specs)} leaves. It "
                "has to match a whole name, such as "
                f"{next(iter(leaves.specs), None)!r}: write '.*' for anything"
            )
    state = Rule(r"(.*/)?opt_state/.*", None)
    if any(map(state.matches, leaves.specs)):
        planned.append(state)
    planned.append(Rule(".*", pattern, sizes=sizes))
    shapes = {
        name: jax.ShapeDtypeStruct(spec.shape, spec.dtype)
        for name, spec in leaves.specs.items()
    }
    layout = layout or _layout_of(leaves)
    try:
        plan = plan_sparsity(shapes, planned, layout=layout.value, dense_head=not head)
    except (TypeError, ValueError) as error:
        raise ValueError(_by_options(str(error))) from error
    return Plan(tuple(replace(x, reason=_by_options(x.reason)) for x in plan.leaves))


def _by_options(text: str) -> str:
    """A text of the library, with the command line's remedies."""
    for remedy, option in _REMEDIES.items():
        text = re.sub(remedy, option, text)
    return text


def _layout_of(leaves: Leaves) -> Layout:
    """The layout that the leaves' names tell."""
    last = {re.split(r"[./]", name)[-1] for name in leaves.specs}
    match "weight" in last, not last.isdisjoint({"embedding", "kernel"}):
        case True, False:
            return Layout.torch
        case False, True:
            return Layout.flax
    raise ValueError(
        f"{leaves.path}: its names do not tell the layout: give --layout torch, where "
        "weights are (out, in), or --layout flax, where they are (in, out)"
    )


def _rule(text: str, sizes: tuple[int, int] | None) -> Rule:
    path, _, pattern = text.rpartition("=")
    spelled = re.fullmatch(r"(.+?)(?:@(-?\d+))?", pattern)
    if not path or spelled is None:
        raise ValueError(
            f"--rule {text!r} is no REGEX=PATTERN, such as '.*mlp.*=1:4', "
            "'.*experts.*=2:4@1' or '.*attn.*=dense'"
        )
    axis = None if spelled[2] is None else int(spelled[2])
    kept = None if spelled[1] == "dense" else spelled[1]
    return Rule(path, kept, axis=axis, sizes=sizes)
