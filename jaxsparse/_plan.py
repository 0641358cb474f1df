"""Plans: which leaves are pruned, to what pattern, along which axis, and why not."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxsparse._axes import LeafAxes
from jaxsparse._contraction import axes_from_trace
from jaxsparse._names import axes_from_names
from jaxsparse._paths import flatten, is_array, shapes_of
from jaxsparse._pattern import NM, as_pattern
from jaxsparse._rule import Rule, RulesLike, as_rules
from jaxsparse._score import check_rankable
from jaxsparse._table import fold, shape_text, table


@dataclass(frozen=True)
class LeafPlan:
    """What is to be done with one leaf.

    Attributes:
      path: the canonical path.
      shape: the leaf's shape; None where the leaf is not an array.
      pattern: None where the leaf stays dense.
      axis: the axis along which groups lie.
      contracted: the axes that the product sums over.
      output: the axes that become axes of the result.
      batch: the axes along which there are separate products.
      reason: why the leaf stays dense.
      note: what is to be known of a leaf that is pruned.
    """

    path: str
    shape: tuple[int, ...] | None
    pattern: NM | None = None
    axis: int | None = None
    contracted: tuple[int, ...] = ()
    output: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()
    reason: str = ""
    note: str = ""

    @property
    def decision(self) -> str:
        """`2:4 along axis 0`, or `dense: ` and the reason."""
        if self.pattern is None:
            return f"dense: {self.reason}"
        note = f", {self.note}" if self.note else ""
        return f"{self.pattern} along axis {self.axis}{note}"


@dataclass(frozen=True)
class Plan:
    """What is to be done with every leaf of a tree: static, hashable, printable.

    Attributes:
      leaves: one `LeafPlan` a leaf, in the order of the tree.
    """

    leaves: tuple[LeafPlan, ...]

    @cached_property
    def by_path(self) -> Mapping[str, LeafPlan]:
        """The leaves keyed by canonical path."""
        return {leaf.path: leaf for leaf in self.leaves}

    def __getitem__(self, path: str) -> LeafPlan:
        return self.by_path[path]

    @property
    def sparse(self) -> tuple[LeafPlan, ...]:
        """The leaves that are pruned."""
        return tuple(leaf for leaf in self.leaves if leaf.pattern is not None)

    def __str__(self) -> str:
        return table(("leaf", "shape", "plan"), _folded(self.leaves))


#: Wherever a plan is taken, what it can be made from is taken too.
PlanLike = Plan | RulesLike


def plan_sparsity(
    params: PyTree,
    rules: RulesLike = "2:4",
    *,
    fn: Callable[..., Any] | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dense_head: bool = True,
) -> Plan:
    """Decides for every leaf whether it is pruned, to what pattern, along which axis.

    With `fn` the axis is read from the trace of `fn(params, *args, **kwargs)`, which
    is not run: it works for any JAX model, from shapes alone. Without, it comes from
    the names that Flax gives its layers; where they leave doubt the leaf stays dense.

    Args:
      params: a tree of arrays or `jax.ShapeDtypeStruct`: a Linen dict, `nnx.State`, an
        Equinox module or any other pytree. Leaves that are no arrays stay as they are.
      rules: ordered rules, of which the first that matches a leaf decides; leaves that
        none matches stay dense. Or one pattern for every leaf.
      fn: a function of the parameters: a forward pass or the loss, not its gradient,
        in which weights are contracted the other way too.
      args: its further arguments; arrays may be `jax.ShapeDtypeStruct`.
      kwargs: its further arguments by name.
      dense_head: keep the output layer dense.

    Returns:
      The plan. Print it to see what is pruned and why the rest is not.

    Raises:
      ValueError: a rule matches no leaf or gives an axis that a leaf does not have; two
        leaves have one path; or nothing is prunable in a tree that has arrays.
      TypeError: a leaf that would be pruned has a dtype without a magnitude order.

    >>> params = {"Dense_0": {"kernel": jnp.ones((64, 32)), "bias": jnp.ones(32)}}
    >>> print(plan_sparsity(params, [Rule(r".*", "2:4")]))
    leaf            shape  plan
    Dense_0/bias    32     dense: bias, norm or scalar
    Dense_0/kernel  64x32  2:4 along axis 0
    """
    rules = as_rules(rules)
    arrays = list(shapes_of(params))
    for rule in rules if arrays else ():
        if not any(map(rule.matches, arrays)):
            raise ValueError(
                f"{rule} matches none of the {len(arrays)} leaves. It has to match a "
                f"whole path, such as {arrays[0]!r}: write '.*' for anything"
            )
    if fn is None:
        axes = axes_from_names(shapes_of(params))
    else:
        axes = axes_from_trace(fn, params, args, kwargs or {})
    return _decide(params, rules, dense_head, axes)


def plan_for(params: PyTree, plan: PlanLike, *, part: bool = False) -> Plan:
    """The plan itself, checked against the shapes of `params`, or one made for them.

    Args:
      params: the tree that the plan will be used on.
      plan: a plan, rules or a pattern.
      part: whether `params` may be a part of the tree that the plan was made for.

    Raises:
      ValueError: the plan does not fit, naming leaf and shapes; besides what
        `plan_sparsity` raises.
    """
    if not isinstance(plan, Plan):
        if not part:
            return plan_sparsity(params, plan)
        axes = axes_from_names(shapes_of(params))
        return _decide(params, as_rules(plan), dense_head=True, axes=axes)

    leaves, _ = flatten(params)
    for path, leaf in leaves.items():
        if not is_array(leaf):
            continue
        if path not in plan.by_path:
            raise ValueError(
                f"the plan knows no leaf {path!r} of shape {leaf.shape}: make it for "
                "this tree, with plan_sparsity"
            )
        if plan[path].shape != leaf.shape:
            raise ValueError(
                f"the plan was made for a leaf {path!r} of shape {plan[path].shape}, "
                f"this one has shape {leaf.shape}: plan this tree"
            )
    missing = [leaf.path for leaf in plan.sparse if leaf.path not in leaves]
    if missing and not part:
        raise ValueError(f"the plan prunes {missing}, which this tree does not have")
    return plan


def _decide(
    params: PyTree,
    rules: Sequence[Rule],
    dense_head: bool,
    axes: Mapping[str, LeafAxes],
) -> Plan:
    leaves, _ = flatten(params)
    plan = Plan(
        tuple(
            _decide_leaf(path, leaf, axes[path], rules, dense_head)
            if path in axes
            else LeafPlan(path, None, reason="not an array")
            for path, leaf in leaves.items()
        )
    )
    if axes and not plan.sparse:
        raise ValueError(
            "nothing prunable:\n"
            + table(("leaf", "shape", "plan"), _folded(plan.leaves))
            + "\nGive rules that match a weight, with fn=... or axis=... where names "
            "do not tell the axis, and sizes=None where the size rule keeps it dense."
        )
    return plan


def _decide_leaf(
    path: str, leaf: Any, axes: LeafAxes, rules: Sequence[Rule], dense_head: bool
) -> LeafPlan:
    shape = tuple(leaf.shape)

    def dense(reason: str) -> LeafPlan:
        return LeafPlan(path, shape, reason=reason)

    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return dense("PRNG key")
    if leaf.dtype == jnp.bool_:
        return dense("bool")
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
    shape: tuple[int, ...], axes: LeafAxes, pattern: NM, sizes: tuple[int, int] | None
) -> str:
    """Why sizes keep the leaf dense, or nothing."""
    assert axes.group is not None
    if shape[axes.group] % pattern.m:
        return f"axis {axes.group} does not divide by {pattern.m}"
    if axes.alignment % pattern.m:
        cut = f"axis {axes.group} is cut at {axes.alignment}"
        return f"{cut}, which does not divide by {pattern.m}"
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


def _folded(leaves: Sequence[LeafPlan]) -> list[tuple[str, ...]]:
    return fold(
        (
            leaf.path,
            ("-" if leaf.shape is None else shape_text(leaf.shape), leaf.decision),
        )
        for leaf in leaves
    )
