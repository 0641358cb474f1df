"""One leaf of a plan: its pattern and its axes, or why it stays dense."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
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
    check_rankable,
)
from jaxsparse._plans.leaf_axes import LeafAxes
from jaxsparse._plans.rule import Rule


@dataclass(frozen=True)
class LeafPlan:
    """What is to be done with one leaf.

    Attributes:
      path: the canonical path.
      shape: the leaf's shape; None where the leaf is not an array.
      pattern: None where the leaf stays dense.
      axis: the axis along which groups lie, and masks are packed.
      contracted: the axes that the product sums over.
      output: the axes that become axes of the result.
      batch: the axes along which there are separate products.
      reason: why the leaf stays dense.
      note: what is to be known of a leaf that is pruned.
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

    @property
    def decision(self) -> str:
        """What is done, in words, or `dense` with the reason."""
        match self.pattern:
            case None:
                return f"dense: {self.reason}"
            case NM(transposable=False):
                where = f" along axis {self.axis}"
            case NM() | Block():
                where = f" along axes {self.axis} and {self.output[-1]}"
            case _:
                where = ""
        return f"{self.pattern}{where}" + (f", {self.note}" if self.note else "")

    @property
    def tile(self) -> tuple[int, ...]:
        """What is pruned as a whole, by its size along each axis."""
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
        """The axes along which there are separate outputs."""
        return tuple(sorted(self.output + self.batch))

    @property
    def counts(self) -> tuple[int, int]:
        """How many there are to choose from, and how many the pattern keeps of them.

        For n:m that is in each group, or of each output where the pattern says so; for
        all other patterns in the leaf, in tiles.
        """
        assert self.shape is not None
        assert self.pattern is not None
        if isinstance(self.pattern, NM):
            return self.pattern.m, self.pattern.n
        total = math.prod(self.shape) // math.prod(self.tile)
        if isinstance(self.pattern, PerOutput):
            total //= math.prod(self.shape[axis] for axis in self.rows)
        return total, round(total * self.pattern.density)


def counted_groups(
    leaves: Sequence[LeafPlan],
) -> list[tuple[list[LeafPlan], int, int]]:
    """Leaves that share a threshold together, all others alone; with their counts.

    The counts are how many there are to choose from and how many are kept of them; see
    `LeafPlan.counts`.
    """
    groups: list[tuple[list[LeafPlan], int, int]] = []
    together: dict[Unstructured, list[LeafPlan]] = {}
    for leaf in leaves:
        match leaf.pattern:
            case Unstructured(across_leaves=True) as pattern:
                together.setdefault(pattern, []).append(leaf)
            case _:
                groups.append(([leaf], *leaf.counts))
    for pattern, group in together.items():
        total = sum(leaf.counts[0] for leaf in group)
        groups.append((group, total, round(total * pattern.density)))
    return groups


def decide_leaf(
    path: str, leaf: Any, axes: LeafAxes, rules: Sequence[Rule], dense_head: bool
) -> LeafPlan:
    """What the first rule that matches a leaf makes of it.

    Raises:
      ValueError: the rule gives an axis that the leaf does not have.
      TypeError: the leaf would be pruned and has a dtype without a magnitude order.
    """
    shape = tuple(leaf.shape)

    def dense(reason: str) -> LeafPlan:
        return LeafPlan(path, shape, reason=reason)

    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return dense("PRNG key")
    if leaf.dtype == jnp.bool_:
        return dense("bool")
    if 0 in shape:
        return dense("empty")
    rule = next((rule for rule in rules if rule.matches(path)), None)
    if rule is None:
        return dense("no rule matches")
    if rule.pattern is None:
        return dense(f"rule {rule.path!r}")
    pattern = as_pattern(rule.pattern)
    if rule.axis is not None:
        axes = _axes_from_rule(path, shape, rule.axis)
    if axes.group is None:
        return dense(axes.reason)
    if axes.head and dense_head:
        return dense("head")
    if reason := _misfit(shape, axes, pattern, rule.sizes):
        return dense(reason)
    try:
        check_rankable(leaf.dtype)
    except TypeError as error:
        raise TypeError(
            f"leaf {path!r} of shape {shape}: {error}, or keep the leaf dense with "
            f"Rule({re.escape(path)!r}, None)"
        ) from None
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


def _axes_from_rule(path: str, shape: tuple[int, ...], axis: int) -> LeafAxes:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"a rule gives axis {axis} to leaf {path!r} of shape {shape}, which has "
            f"{len(shape)} axes: narrow the rule's path or mend its axis"
        )
    axis %= len(shape)
    others = tuple(i for i in range(len(shape)) if i != axis)
    return LeafAxes(group=axis, contracted=(axis,), output=others)


def _misfit(
    shape: tuple[int, ...],
    axes: LeafAxes,
    pattern: Pattern,
    sizes: tuple[int, int] | None,
) -> str:
    """Why sizes keep the leaf dense, or nothing."""
    assert axes.group is not None
    match pattern:
        case NM(transposable=True) | Block() | Channel() if not axes.output:
            return "no output axis"
        case NM(m=m, transposable=both):
            if both and shape[axes.output[-1]] % m:
                return f"axis {axes.output[-1]} does not divide by {m}"
            return _group_misfit(shape, axes, m) or _size_misfit(shape, axes, sizes)
        case Block(shape=(height, width)):
            for axis, size in ((axes.group, height), (axes.output[-1], width)):
                if shape[axis] % size:
                    return f"axis {axis} does not divide by {size}"
    return ""


def _group_misfit(shape: tuple[int, ...], axes: LeafAxes, m: int) -> str:
    assert axes.group is not None
    if shape[axes.group] % m:
        return f"axis {axes.group} does not divide by {m}"
    if axes.alignment % m:
        cut = f"axis {axes.group} is cut at {axes.alignment}"
        return f"{cut}, which does not divide by {m}"
    return ""


def _size_misfit(
    shape: tuple[int, ...], axes: LeafAxes, sizes: tuple[int, int] | None
) -> str:
    if sizes is None:
        return ""
    outputs = math.prod(shape[axis] for axis in axes.output)
    inputs = math.prod(shape[axis] for axis in axes.contracted)
    for what, size, divisor in zip(
        ("outputs", "inputs"), (outputs, inputs), sizes, strict=True
    ):
        if size % divisor:
            return f"size rule: {size} {what} do not divide by {divisor}"
    return ""
