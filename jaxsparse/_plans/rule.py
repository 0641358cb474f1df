"""Rules: what a user says about leaves, by their paths."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxsparse._patterns import Pattern, PatternLike, as_pattern


#: NVIDIA ASP's size rule: outputs divide by 8, inputs by 16.
ASP_SIZES = (8, 16)


@dataclass(frozen=True)
class Rule:
    """What to do with the leaves whose path matches.

    Attributes:
      path: a regular expression that the whole canonical path has to match, such as
        `".*mlp.*"`; a path is the names on the way to a leaf, joined by `/`.
      pattern: `"2:4"`, `(2, 4)`, `NM(2, 4)`, `Unstructured(0.9)`, `Block((4, 4), 0.9)`,
        `PerOutput(0.5)`, `Channel(0.5)`, or None to keep the leaves dense.
      axis: the axis along which groups lie, over what names say.
      sizes: leaves are pruned to n:m only if these two divide the product of the
        output axes and that of the contracted axes. The default, `(8, 16)`, is NVIDIA
        ASP's rule; None turns it off. The group axis has to divide by `m` in any case.

    Raises:
      ValueError: `path` is no regular expression, or `pattern` no pattern.

    >>> print(Rule(r".*mlp.*", "1:4").pattern)
    1:4
    """

    path: str
    pattern: PatternLike | None
    axis: int | None = field(default=None, kw_only=True)
    sizes: tuple[int, int] | None = field(default=ASP_SIZES, kw_only=True)

    def __post_init__(self) -> None:
        try:
            re.compile(self.path)
        except re.error as error:
            raise ValueError(
                f"the path of a rule is a regular expression, {self.path!r} is none: "
                f"{error}"
            ) from error
        if self.pattern is not None:
            object.__setattr__(self, "pattern", as_pattern(self.pattern))

    def matches(self, path: str) -> bool:
        """Whether the whole of `path` matches; `.` stands for a newline too."""
        return re.fullmatch(self.path, path, re.DOTALL) is not None


#: What a plan can be made from: rules, or one pattern for every leaf.
RulesLike = PatternLike | Sequence[Rule]


def as_rules(rules: RulesLike) -> tuple[Rule, ...]:
    """Reads rules, or one pattern for every leaf, as rules.

    Raises:
      TypeError: neither a pattern nor a sequence of rules.
    """
    if isinstance(rules, Sequence) and not isinstance(rules, str):
        given = tuple(rule for rule in rules if isinstance(rule, Rule))
        if len(given) == len(rules):
            return given
    match rules:
        case str() | (int(), int()):
            return (Rule(".*", rules),)
        case _ if isinstance(rules, Pattern):
            return (Rule(".*", rules),)
    raise TypeError(f"give a pattern, a list of Rule or a Plan, got {rules!r}")
