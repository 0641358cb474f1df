"""Plans: which leaves are pruned, to what pattern, along which axis, and why not."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from jaxsparse._patterns import Pattern, constant_arrays
from jaxsparse._plans.axes_from_flax import axes_from_names
from jaxsparse._plans.axes_from_torch import axes_from_torch_names, refuse_tensors
from jaxsparse._plans.axes_from_trace import axes_from_trace
from jaxsparse._plans.leaf_axes import LeafAxes
from jaxsparse._plans.leaf_plan import LeafPlan, decide_leaf, plan_no_array
from jaxsparse._plans.only_parameters import only_parameters
from jaxsparse._plans.plan_error import PlanError, Remedy
from jaxsparse._plans.plan_table import plan_rows, plan_total
from jaxsparse._plans.roles_from_names import names_lack_head
from jaxsparse._plans.rule import Rule, RulesLike, as_rules, check_rules
from jaxsparse._trace import ROLES, Role
from jaxsparse._trees import PyTree, Tabular, array_shapes, flatten, is_array


@dataclass(frozen=True)
class Plan(Tabular):
    """The plan of every leaf of a tree: static, hashable, printable.

    A notebook displays it as HTML, a rich console as a rich table, and
    `json.dumps(plan.as_dict())` is its JSON. In a table, leaves that are not arrays
    share a row.

    Attributes:
      leaves: one `LeafPlan` for each leaf, in the order of the tree.
      lacks_head: whether no output layer was recognised, so that none stays dense for
        that.
    """

    leaves: tuple[LeafPlan, ...]
    lacks_head: bool = False

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

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines about the leaves together, which are printed below the table."""
        return (_NO_HEAD,) if self.lacks_head else ()

    def with_remedies(self, remedies: Mapping[Remedy, str]) -> "Plan":
        """Returns the plan with the remedies of its leaves in the words of a table."""
        leaves = tuple(leaf.with_remedies(remedies) for leaf in self.leaves)
        return replace(self, leaves=leaves)

    def as_dict(self) -> dict[str, Any]:
        """Returns data that JSON can hold: `leaves`, a dict for each, and `notes`."""
        return {**super().as_dict(), "notes": list(self.notes)}

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        return ("leaf", "shape", "plan"), plan_rows(self.leaves)

    def _total(self) -> tuple[str, str, str]:
        return plan_total(self.leaves)


_NO_HEAD = (
    "no output layer was recognised: if one of these leaves is one, keep it dense with "
    "Rule(path, None)"
)


class NothingPrunableError(PlanError):
    """No leaf of a tree would be pruned.

    Attributes:
      plan: the plan, with the reason for every leaf.
    """

    def __init__(self, plan: Plan):
        super().__init__("nothing prunable", "rules")
        self.plan = plan
        self.args = (plan,)  # what `pickle` calls the constructor with

    def describe(self, remedies: Mapping[Remedy, str]) -> str:
        """Returns the text, the plan included, with remedies in other words."""
        plan = self.plan.with_remedies(remedies)
        return f"{self.problem}:\n{plan}\n{remedies['rules']}"


#: What functions accept as a plan: a plan, or what one is made from.
PlanLike = Plan | RulesLike


def plan_sparsity(
    params: PyTree,
    rules: RulesLike = "2:4",
    *,
    fn: Callable[..., Any] | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dense_head: bool = True,
    dense_router: bool = True,
    dense_adapter: bool = True,
    layout: Literal["flax", "torch"] = "flax",
) -> Plan:
    """Plans which leaves are pruned, to what pattern, and along which axis.

    With `fn` the axis is read from the trace of `fn(params, *args, **kwargs)`, which
    is not run: this works for any JAX model, from shapes alone. Without `fn` it comes
    from the names that Flax gives its layers; leaves with ambiguous names stay dense.

    Args:
      params: a tree of arrays or `jax.ShapeDtypeStruct`: a Linen dict, `nnx.State`, an
        Equinox module or any other pytree. Leaves that are not arrays are ignored, and
        those of complex numbers stay dense. So do those that NNX holds in variables
        other than `nnx.Param`, such as caches.
      rules: rules in order: the first that matches a leaf decides, and leaves that none
        matches stay dense. Or one pattern for every leaf.
      fn: a function of the parameters: a forward pass or the loss. Not the gradient of
        the loss, which contracts weights along their other axis too.
      args: its further arguments; arrays may be `jax.ShapeDtypeStruct`.
      kwargs: its further arguments by name.
      dense_head: whether output layers stay dense. With `fn`, an output layer is a
        product that others precede and none follows; without it, names decide. If none
        is recognised, the last line of the plan says so.
      dense_router: whether the routers of mixtures of experts stay dense.
      dense_adapter: whether low-rank adapters (LoRA) stay dense.
      layout: whose names and layout decide without `fn`: `"flax"` or `"torch"`. With
        `"torch"`, `params` is a PyTorch state dict, in which weights are `(out, in)`
        and those of convolutions `(out, in, height, width)`, as in most Hugging Face
        files.

    Returns:
      The plan. Print it to see what is pruned, and why the rest stays dense.

    Raises:
      ValueError: a rule matches no leaf or gives an axis that a leaf does not have; two
        leaves have the same path; the tree has arrays and none would be pruned;
        `layout` is unknown, or `"torch"` with `fn`.
      TypeError: a leaf is a PyTorch tensor.

    >>> import jax.numpy as jnp
    >>> kernel = jnp.arange(2048.0).reshape(64, 32)
    >>> params = {"Dense_0": {"kernel": kernel, "bias": jnp.ones(32)}}
    >>> print(plan_sparsity(params, [Rule(r".*", "2:4")]))
    leaf            shape  plan
    Dense_0/bias    32     dense: bias, norm or scalar
    Dense_0/kernel  64x32  2:4 along axis 0
    total           2,080  1 of 1 pruned: 49.2 % of weights
    >>> print(plan_sparsity({"fc1.weight": kernel.T}, layout="torch"))
    leaf        shape  plan
    fc1.weight  32x64  2:4 along axis 1
    total       2,048  1 of 1 pruned: 50.0 % of weights
    """
    if layout not in ("flax", "torch") or (fn is not None and layout != "flax"):
        raise ValueError(
            f"layout={layout!r}: give 'flax' or 'torch' without fn, and no layout with "
            "fn, whose trace determines the axes"
        )
    rules, leaves = as_rules(rules), flatten(params).by_path
    lacks_head = None
    shapes = array_shapes(leaves)
    check_rules(rules, list(shapes))
    if fn is not None:
        axes, lacks_head = axes_from_trace(fn, params, args, kwargs or {})
    elif layout == "torch":
        refuse_tensors(leaves)
        axes = axes_from_torch_names(shapes)
    else:
        axes = axes_from_names(shapes)
    dense: dict[Role, bool] = {
        "head": dense_head,
        "router": dense_router,
        "adapter": dense_adapter,
    }
    axes = only_parameters(axes, params)
    plan = _decide(leaves, rules, [role for role in ROLES if dense[role]], axes)
    plan = _with_constants(plan, leaves)
    if lacks_head is None:
        lacks_head = len(plan.sparse) > 1 and names_lack_head(axes, rules)
    return replace(plan, lacks_head=lacks_head and dense_head)


def _with_constants(plan: Plan, leaves: Mapping[str, Any]) -> Plan:
    """Notes which of the pruned leaves are constant, where values are known."""
    constant = constant_arrays({leaf.path: leaves[leaf.path] for leaf in plan.sparse})
    return Plan(
        tuple(leaf.with_constant(leaf.path in constant) for leaf in plan.leaves)
    )


def is_plan_like(plan: Any) -> bool:
    """Returns whether this is a plan, rules or a pattern, not a tree of masks."""
    match plan:
        case str() | (int(), int()):
            return True
        case [*rules]:
            return bool(rules) and all(isinstance(rule, Rule) for rule in rules)
    return isinstance(plan, Plan | Pattern)


def plan_or_rules(plan: PlanLike) -> Plan | tuple[Rule, ...]:
    """Returns a plan as it is and anything else as rules, so that errors come early."""
    return plan if isinstance(plan, Plan) else as_rules(plan)


def plan_for(params: PyTree, plan: PlanLike) -> Plan:
    """Returns a plan that fits `params`: the plan itself, or one made from rules.

    Args:
      params: the tree that the plan will be used on.
      plan: a plan, rules or a pattern.

    Raises:
      PlanError: the plan does not fit; the error names the leaf and both shapes.
      ValueError, TypeError: as `plan_sparsity`.
    """
    leaves = flatten(params).by_path
    if isinstance(plan, Plan):
        return _fit(plan, leaves)
    rules, shapes = as_rules(plan), array_shapes(leaves)
    check_rules(rules, list(shapes))
    axes = only_parameters(axes_from_names(shapes), params)
    return _decide(leaves, rules, ROLES, axes)


def plan_for_part(leaves: Mapping[str, Any], plan: PlanLike) -> Plan:
    """As `plan_for`, for an optimizer: its leaves may be a part of the plan's tree.

    They are given by canonical path. What it updates is a parameter, whatever holds it.
    """
    if isinstance(plan, Plan):
        _check_leaves(plan, leaves)
        return Plan(tuple(leaf for leaf in plan.leaves if leaf.path in leaves))
    return _decide(leaves, as_rules(plan), ROLES, axes_from_names(array_shapes(leaves)))


def _fit(plan: Plan, leaves: Mapping[str, Any]) -> Plan:
    """Returns the plan, checked against leaves."""
    _check_leaves(plan, leaves)
    missing = [leaf.path for leaf in plan.sparse if leaf.path not in leaves]
    if missing:
        raise PlanError(
            f"the plan prunes {missing}, which this tree does not have: give the whole "
            f"tree, or plan with Rule({missing[0]!r}, None)"
        )
    return plan


def _check_leaves(plan: Plan, leaves: Mapping[str, Any]) -> None:
    for path, leaf in leaves.items():
        if is_array(leaf):
            _check_leaf(plan, path, leaf.shape)


def _check_leaf(plan: Plan, path: str, shape: tuple[int, ...]) -> None:
    planned = plan.by_path.get(path)
    if planned is None:
        raise PlanError(
            f"the plan has no leaf {path!r} of shape {shape}: make a plan for this "
            "tree with plan_sparsity",
            path=path,
        )
    is_number = planned.shape is None and shape == ()  # which `jit` makes an array
    if planned.shape != shape and not is_number:
        raise PlanError(
            f"the plan was made for a leaf {path!r} of shape {planned.shape}, this one "
            f"has shape {shape}: make a plan for this tree with plan_sparsity",
            path=path,
        )


def _decide(
    leaves: Mapping[str, Any],
    rules: Sequence[Rule],
    dense_roles: Collection[Role],
    axes: Mapping[str, LeafAxes],
) -> Plan:
    """Plans every leaf, given the axes of those that are arrays."""
    plan = Plan(
        tuple(
            decide_leaf(path, leaf, axes[path], rules, dense_roles)
            if path in axes
            else plan_no_array(path, leaf)
            for path, leaf in leaves.items()
        )
    )
    has_weights = axes or any(leaf.remedy == "held" for leaf in plan.leaves)
    if has_weights and not plan.sparse:
        raise NothingPrunableError(plan)
    return plan
