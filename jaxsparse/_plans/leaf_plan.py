"""One leaf of a plan: its pattern and its axes, or why it stays dense."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse._patterns import (
    NM,
    Block,
    Channel,
    Pattern,
    PerOutput,
    Unstructured,
    as_pattern,
    is_rankable,
)
from jaxsparse._plans.leaf_axes import LeafAxes
from jaxsparse._plans.misfit import misfit
from jaxsparse._plans.plan_error import (
    PYTHON_REMEDIES,
    PlanError,
    Remedy,
)
from jaxsparse._plans.rule import Rule
from jaxsparse._trace import NOT_AN_OPERAND, Role
from jaxsparse._trees import is_array


#: The note of a leaf whose mask says nothing about its weights.
_CONSTANT = "constant: ties decide"

_PRNG_KEY, _BOOL, _EMPTY = "PRNG key", "bool", "empty"
#: The reasons of arrays that are no weights, whatever the rules say.
NO_WEIGHT = frozenset([_PRNG_KEY, _BOOL, _EMPTY, NOT_AN_OPERAND])


@dataclass(frozen=True)
class LeafPlan:
    """The plan of one leaf.

    Attributes:
      path: the canonical path.
      shape: the leaf's shape; None if the leaf is not an array.
      pattern: the pattern; None if the leaf stays dense.
      axis: the axis along which groups lie and masks are packed.
      contracted: the axes that the product sums over.
      output: the axes that become axes of the result.
      batch: the axes along which there are separate products.
      reason: why the leaf stays dense, and the remedy in Python's words.
      note: conditions on the plan of a leaf that is pruned, joined by commas, such as
        `until merged` and `constant: ties decide`.
      remedy: the kind of the remedy in `reason`, if there is one.
    """

    path: str
    shape: tuple[int, ...] | None
    pattern: Pattern | None = None
    axis: int | None = None
    contracted: tuple[int, ...] = ()
    output: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()
    reason: str = ""
    note: str = ""
    remedy: Remedy | None = None

    @property
    def decision(self) -> str:
        """The pattern and its axes in words, or `dense` with the reason."""
        match self.pattern:
            case None:
                return f"dense: {self.reason}"
            case NM(transposable=False):
                along = f" along axis {self.axis}"
            case NM() | Block():
                along = f" along axes {self.axis} and {self.output[-1]}"
            case _:
                along = ""
        return f"{self.pattern}{along}" + (f", {self.note}" if self.note else "")

    def with_remedies(self, remedies: Mapping[Remedy, str]) -> "LeafPlan":
        """Returns the plan with the remedy in `reason` in the words of a table."""
        if self.remedy is None:
            return self
        problem = self.reason.removesuffix(f"; {PYTHON_REMEDIES[self.remedy]}")
        return replace(self, reason=f"{problem}; {remedies[self.remedy]}")

    def with_constant(self, is_constant: bool) -> "LeafPlan":
        """Returns the plan with a note if all weights of the leaf are equal."""
        notes = [x for x in self.note.split(", ") if x and x != _CONSTANT]
        if is_constant and self.pattern is not None:
            notes.append(_CONSTANT)
        return replace(self, note=", ".join(notes))

    @property
    def tile(self) -> tuple[int, ...]:
        """The size along each axis of the unit that is pruned as a whole."""
        assert self.shape is not None
        match self.pattern:
            case Block(shape=(height, width)):
                sizes = {self.axis: height, self.output[-1]: width}
                return tuple(sizes.get(i, 1) for i in range(len(self.shape)))
            case Channel():
                return tuple(
                    1 if i in self.rows else size for i, size in enumerate(self.shape)
                )
        return (1,) * len(self.shape)

    @property
    def rows(self) -> tuple[int, ...]:
        """The output and batch axes, along which each index is a separate output."""
        return tuple(sorted(self.output + self.batch))

    @property
    def counts(self) -> tuple[int, int]:
        """The number of units to choose from, and the number that the pattern keeps.

        For n:m these are the weights of each group; for `PerOutput`, the weights of
        each output; for all other patterns, the tiles of the leaf.
        """
        assert self.shape is not None
        assert self.pattern is not None
        if isinstance(self.pattern, NM):
            return self.pattern.m, self.pattern.n
        total = math.prod(self.shape) // math.prod(self.tile)
        if isinstance(self.pattern, PerOutput):
            total //= math.prod(self.shape[axis] for axis in self.rows)
        return total, round(total * self.pattern.density)


def pruned_weights(leaf: LeafPlan) -> int:
    """Returns the number of weights of a leaf that its plan prunes.

    >>> pruned_weights(LeafPlan("w", (8, 16), NM(1, 4), axis=1))
    96
    """
    if leaf.pattern is None:
        return 0
    total, kept = leaf.counts
    return math.prod(leaf.shape or ()) * (total - kept) // total


def plan_no_array(path: str, leaf: Any) -> LeafPlan:
    """Returns the plan of a leaf that is not an array."""
    held = jax.tree.leaves(getattr(leaf, "value", None))
    if any(map(is_array, held)):
        return dense_leaf(path, None, f"a {type(leaf).__name__}, not an array", "held")
    return LeafPlan(path, None, reason="not an array")


def dense_leaf(
    path: str, shape: tuple[int, ...] | None, problem: str, remedy: Remedy | None
) -> LeafPlan:
    """Returns the plan of a leaf that stays dense, with the remedy in its reason."""
    reason = problem if remedy is None else f"{problem}; {PYTHON_REMEDIES[remedy]}"
    return LeafPlan(path, shape, reason=reason, remedy=remedy)


def counted_groups(
    leaves: Sequence[LeafPlan],
) -> list[tuple[list[LeafPlan], int, int]]:
    """Returns groups of leaves that share a threshold, each with its two counts.

    A leaf that shares no threshold is a group of its own. The counts are the units to
    choose from and those kept of them; see `LeafPlan.counts`.
    """
    groups: list[tuple[list[LeafPlan], int, int]] = []
    shared: dict[Unstructured, list[LeafPlan]] = {}
    for leaf in leaves:
        match leaf.pattern:
            case Unstructured(across_leaves=True) as pattern:
                shared.setdefault(pattern, []).append(leaf)
            case _:
                groups.append(([leaf], *leaf.counts))
    for pattern, group in shared.items():
        total = sum(leaf.counts[0] for leaf in group)
        groups.append((group, total, round(total * pattern.density)))
    return groups


def decide_leaf(
    path: str,
    leaf: Any,
    axes: LeafAxes,
    rules: Sequence[Rule],
    dense_roles: Collection[Role],
) -> LeafPlan:
    """Returns the plan of a leaf by the first rule that matches it.

    Leaves whose role is one of `dense_roles` stay dense.

    Raises:
      PlanError: the rule gives an axis that the leaf does not have.
    """
    shape = tuple(leaf.shape)
    dense = lambda reason: LeafPlan(path, shape, reason=reason)
    if reason := _not_a_weight(leaf):
        return dense(reason)
    rule = next((rule for rule in rules if rule.matches(path)), None)
    if rule is None:
        return dense("no rule matches")
    if rule.pattern is None:
        return dense(f"rule {rule.path!r}")
    pattern = as_pattern(rule.pattern)
    if rule.axis is not None:
        axes = _axes_from_rule(path, shape, rule.axis)
    may_be_pruned = axes.group is not None or axes.remedy is not None
    if axes.role is not None and axes.role in dense_roles and may_be_pruned:
        return dense_leaf(path, shape, axes.role, axes.role)
    if axes.group is None:
        return dense_leaf(path, shape, axes.reason, axes.remedy)
    if reason := misfit(shape, axes, pattern, rule.sizes):
        return dense_leaf(path, shape, *reason)
    if not is_rankable(leaf.dtype):
        return dense(f"{leaf.dtype} has no magnitude order")
    return LeafPlan(
        path,
        shape,
        pattern=pattern,
        axis=axes.group,
        contracted=axes.contracted,
        output=axes.output,
        batch=axes.batch,
        note=axes.note,
    )


def _not_a_weight(leaf: Any) -> str:
    """Returns why an array is not pruned under any rule, or an empty string."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return _PRNG_KEY
    if leaf.dtype == jnp.bool_:
        return _BOOL
    return _EMPTY if 0 in leaf.shape else ""


def _axes_from_rule(path: str, shape: tuple[int, ...], axis: int) -> LeafAxes:
    if not -len(shape) <= axis < len(shape):
        problem = (
            f"a rule gives axis {axis} to leaf {path!r} of shape {shape}, which has "
            f"{len(shape)} axes"
        )
        raise PlanError(problem, "rule_axis", path=path)
    axis %= len(shape)
    others = tuple(i for i in range(len(shape)) if i != axis)
    return LeafAxes(group=axis, contracted=(axis,), output=others)
