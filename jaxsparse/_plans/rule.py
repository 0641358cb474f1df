"""Rules, which select leaves by path and give them a pattern."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import jax

from jaxsparse._patterns import Pattern, PatternLike, as_pattern, fraction_hint
from jaxsparse._plans.plan_error import PlanError
from jaxsparse._trees import alike, is_array


#: NVIDIA ASP's size rule: what the numbers of outputs and inputs must be divisible by.
ASP_SIZES = (8, 16)


@dataclass(frozen=True)
class Rule:
    """A pattern for the leaves whose paths match a regular expression.

    Attributes:
      path: a regular expression that must match the whole canonical path, such as
        `".*mlp.*"`. A path is the names of a leaf's parents and its own, joined by `/`.
      pattern: `"2:4"`, `(2, 4)`, `NM(2, 4)`, `Unstructured(0.9)`, `Block((4, 4), 0.9)`,
        `PerOutput(0.5)`, `Channel(0.5)`, or None to keep the leaves dense.
      axis: the axis along which groups lie. It overrides names and trace.
      sizes: leaves are pruned to n:m only if the product of their output sizes is
        divisible by the first number, and the product of their contracted sizes by the
        second. The default, `(8, 16)`, is NVIDIA ASP's rule; None turns it off. The
        size of the group axis must be divisible by `m` in any case.

    Raises:
      ValueError: `path` is not a regular expression, or `pattern` is not a pattern.

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
                "the path of a rule is a regular expression, which "
                f"{self.path!r} is not: {error}. If it is the path of a leaf, write "
                f"{re.escape(self.path)!r}"
            ) from error
        if self.pattern is not None:
            object.__setattr__(self, "pattern", as_pattern(self.pattern))

    def matches(self, path: str) -> bool:
        """Returns whether the regular expression matches all of `path`.

        A `.` in it also matches a newline.
        """
        return re.fullmatch(self.path, path, re.DOTALL) is not None


#: What plans are made from: rules, or one pattern for every leaf.
RulesLike = PatternLike | Sequence[Rule]


def as_rules(rules: RulesLike) -> tuple[Rule, ...]:
    """Converts one pattern for every leaf, or a sequence of rules, to rules.

    Raises:
      TypeError: `rules` is neither a pattern nor a sequence of rules.
    """
    if isinstance(rules, Sequence) and not isinstance(rules, str):
        checked = tuple(rule for rule in rules if isinstance(rule, Rule))
        if len(checked) == len(rules):
            return checked
    match rules:
        case str() | (int(), int()):
            return (Rule(".*", rules),)
        case _ if isinstance(rules, Pattern):
            return (Rule(".*", rules),)
    words = "give a pattern, a list of Rule or a Plan, got"
    if any(map(is_array, jax.tree.leaves(rules))):
        raise TypeError(
            f"{words} a tree of arrays: parameters come first, and masks are for masks="
        )
    raise TypeError(f"{words} {rules!r}{fraction_hint(rules)}")


def check_rules(rules: Sequence[Rule], paths: Sequence[str]) -> None:
    """Raises unless every rule matches a path, if there are any paths.

    Raises too if a rule's path is that of leaves which it does not match as a regular
    expression.
    """
    for rule in rules if paths else ():
        if meant := expression_meant(rule.path, paths):
            raise PlanError(
                f"{rule} does not match the leaves of this name, because a path is "
                f"read as a regular expression: write {meant!r}"
            )
        if not any(map(rule.matches, paths)):
            raise PlanError(
                f"{rule} matches none of the {len(paths)} leaves. It must match a "
                f"whole path, such as {paths[0]!r}: write '.*' for anything"
            )


def expression_meant(text: str, paths: Iterable[str]) -> str | None:
    r"""Returns the regular expression for a path, given as it is printed.

    In a table, one row may stand for several paths, with their numbers in braces.

    Args:
      text: what is used as a regular expression.
      paths: all paths.

    Returns:
      The expression for the paths that have this name, or None if there are none or
      `text` matches them.

    >>> expression_meant("a[0]", ["a0", "a[0]"])
    'a\\[0\\]'
    >>> expression_meant("l{0..2}/w", ["l0/w", "l1/w", "l2/w"])
    'l\\d+/w'
    """
    printed = {path: [path] for path in paths}
    if "{" in text:
        printed = {**alike({path: path for path in printed}), **printed}
    named = printed.get(text, [])
    if all(re.fullmatch(text, path, re.DOTALL) for path in named):
        return None
    if named == [text]:
        return re.escape(text)
    return r"\d+".join(map(re.escape, re.split(r"\{[\d.,]+\}", text)))
