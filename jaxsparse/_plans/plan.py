"""Plans: which leaves are pruned, to what pattern, along which axis, and why not."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jaxtyping import PyTree

from jaxsparse._patterns import Pattern
from jaxsparse._plans.axes_from_flax import axes_from_names
from jaxsparse._plans.axes_from_torch import axes_from_torch_names, refuse_tensors
from jaxsparse._plans.axes_from_trace import axes_from_trace
from jaxsparse._plans.leaf_axes import LeafAxes
from jaxsparse._plans.leaf_plan import LeafPlan, decide_leaf
from jaxsparse._plans.rule import Rule, RulesLike, as_rules
from jaxsparse._trees import (
    Tabular,
    array_shapes,
    flatten,
    fold,
    is_array,
    shape_text,
)


@dataclass(frozen=True)
class Plan(Tabular):
    """What is to be done with every leaf of a tree: static, hashable, printable.

    A notebook shows it in HTML, a console of rich as a table of its own, and
    `json.dumps(plan.as_dict())` is its JSON.

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

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        return ("leaf", "shape", "plan"), _folded(self.leaves)


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
    layout: str = "flax",
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
      layout: whose names and layouts decide without `fn`: `"flax"` or `"torch"`. With
        the second `params` is a state dict of PyTorch, in which weights are `(out, in)`
        and those of convolutions `(out, in, height, width)`, as in most files of
        Hugging Face.

    Returns:
      The plan. Print it to see what is pruned and why the rest is not.

    Raises:
      ValueError: a rule matches no leaf or gives an axis that a leaf does not have; two
        leaves have one path; nothing is prunable in a tree that has arrays; or a layout
        that is neither, or `"torch"` with `fn`.
      TypeError: a leaf that would be pruned has a dtype without a magnitude order, or
        is a tensor of PyTorch.

    >>> import jax.numpy as jnp
    >>> params = {"Dense_0": {"kernel": jnp.ones((64, 32)), "bias": jnp.ones(32)}}
    >>> print(plan_sparsity(params, [Rule(r".*", "2:4")]))
    leaf            shape  plan
    Dense_0/bias    32     dense: bias, norm or scalar
    Dense_0/kernel  64x32  2:4 along axis 0
    >>> print(plan_sparsity({"fc1.weight": jnp.ones((32, 64))}, layout="torch"))
    leaf        shape  plan
    fc1.weight  32x64  2:4 along axis 1
    """
    if layout not in ("flax", "torch") or (fn is not None and layout != "flax"):
        raise ValueError(
            f"layout={layout!r}: without fn give 'flax' or 'torch'; with fn the trace "
            "tells the axes, whatever the layout"
        )
    rules, leaves = as_rules(rules), flatten(params).by_path
    shapes = array_shapes(leaves)
    _check_rules(rules, shapes)
    if fn is not None:
        axes = axes_from_trace(fn, params, args, kwargs or {})
    elif layout == "torch":
        refuse_tensors(leaves)
        axes = axes_from_torch_names(shapes)
    else:
        axes = axes_from_names(shapes)
    return _decide(leaves, rules, dense_head, axes)


def is_plan_like(plan: Any) -> bool:
    """Whether this is a plan or what one can be made from, not a tree of masks."""
    match plan:
        case str() | (int(), int()):
            return True
        case [*rules]:
            return bool(rules) and all(isinstance(rule, Rule) for rule in rules)
    return isinstance(plan, Plan | Pattern)


def plan_or_rules(plan: PlanLike) -> Plan | tuple[Rule, ...]:
    """A plan as it is, or rules, so that what is misspelled is refused at once."""
    return plan if isinstance(plan, Plan) else as_rules(plan)


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
    return plan_for_leaves(flatten(params).by_path, plan, part=part)


def plan_for_leaves(
    leaves: Mapping[str, Any], plan: PlanLike, *, part: bool = False
) -> Plan:
    """As `plan_for`, for the leaves of a tree by canonical path."""
    if not isinstance(plan, Plan):
        rules, shapes = as_rules(plan), array_shapes(leaves)
        if not part:
            _check_rules(rules, shapes)
        return _decide(leaves, rules, dense_head=True, axes=axes_from_names(shapes))
    for path, leaf in leaves.items():
        if not is_array(leaf):
            continue
        if path not in plan.by_path:
            raise ValueError(
                f"the plan has no leaf {path!r} of shape {leaf.shape}: make it for "
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
    if not part:
        return plan
    return Plan(tuple(leaf for leaf in plan.leaves if leaf.path in leaves))


def _check_rules(rules: Sequence[Rule], shapes: Mapping[str, Any]) -> None:
    """Raises unless every rule matches a leaf."""
    paths = list(shapes)
    for rule in rules if paths else ():
        if not any(map(rule.matches, paths)):
            raise ValueError(
                f"{rule} matches none of the {len(paths)} leaves. It has to match a "
                f"whole path, such as {paths[0]!r}: write '.*' for anything"
            )


def _decide(
    leaves: Mapping[str, Any],
    rules: Sequence[Rule],
    dense_head: bool,
    axes: Mapping[str, LeafAxes],
) -> Plan:
    plan = Plan(
        tuple(
            decide_leaf(path, leaf, axes[path], rules, dense_head)
            if path in axes
            else LeafPlan(path, None, reason="not an array")
            for path, leaf in leaves.items()
        )
    )
    if axes and not plan.sparse:
        raise ValueError(
            f"nothing prunable:\n{plan}\n"
            "Give rules that match a weight, with fn=... or axis=... where names do "
            "not tell the axis, and sizes=None where the size rule keeps it dense."
        )
    return plan


def _folded(leaves: Sequence[LeafPlan]) -> list[tuple[str, ...]]:
    return fold(
        (
            leaf.path,
            ("-" if leaf.shape is None else shape_text(leaf.shape), leaf.decision),
        )
        for leaf in leaves
    )
