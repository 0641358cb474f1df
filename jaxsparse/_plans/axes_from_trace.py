"""Axes of a leaf from the trace of the function that uses it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxsparse._plans.leaf_axes import LeafAxes
from jaxsparse._trace import NOT_AN_OPERAND, Role, Use, find_roles, trace
from jaxsparse._trees import PyTree, array_shapes, flatten, map_named


def contraction_axes(
    fn: Callable[..., Any], params: PyTree, *args: Any, **kwargs: Any
) -> PyTree:
    """Returns the axis of every leaf that `fn(params, *args, **kwargs)` contracts.

    This is the axis along which groups lie. The function is traced, not run: nothing is
    computed, and shapes are enough. Rules, the size rule and `dense_head` are applied
    later, by `plan_sparsity`.

    Args:
      fn: any JAX function of the parameters: a forward pass or a loss.
      params: a tree of arrays or `jax.ShapeDtypeStruct`.
      *args: further arguments; arrays may be `jax.ShapeDtypeStruct`, other objects are
        passed to `fn` unchanged.
      **kwargs: further arguments by name.

    Returns:
      A tree like `params` with an axis for each leaf, or None where the trace shows no
      single axis.

    Raises:
      ValueError: two leaves have the same path. Errors that `fn` raises when it is
        traced are passed on.

    >>> import jax
    >>> shape = lambda *s: jax.ShapeDtypeStruct(s, "float32")
    >>> fn = lambda params, x: jax.numpy.einsum("bd,hdk->bhk", x, params["w"])
    >>> contraction_axes(fn, {"w": shape(4, 16, 8)}, shape(2, 16))
    {'w': 1}
    """
    axes, _ = axes_from_trace(fn, params, args, kwargs)
    return map_named(lambda path, _: axes[path].group if path in axes else None, params)


def leaf_uses(
    fn: Callable[..., Any], params: PyTree, *args: Any, **kwargs: Any
) -> dict[str, tuple[Use, ...]]:
    """Returns all uses that `fn(params, *args, **kwargs)` makes of each leaf.

    `plan_sparsity` decides from these: each use has the operation, the leaf's
    contracted, batch and output axes, the shape of the other operand and the line of
    the program.

    Args:
      fn: any JAX function of the parameters.
      params: a tree of arrays or `jax.ShapeDtypeStruct`.
      *args: further arguments.
      **kwargs: further arguments by name.

    Returns:
      The uses by canonical path; an empty tuple for a leaf that `fn` does not use.

    Raises:
      ValueError: two leaves have the same path.

    >>> import jax
    >>> shape = lambda *s: jax.ShapeDtypeStruct(s, "float32")
    >>> fn = lambda params, x: x @ params["w"]
    >>> use, = leaf_uses(fn, {"w": shape(16, 8)}, shape(2, 16))["w"]
    >>> use.primitive, use.contracted, use.output, use.other
    ('dot_general', (0,), (1,), (2, 16))
    """
    return trace(fn, params, args, kwargs).uses


def axes_from_trace(
    fn: Callable[..., Any],
    params: PyTree,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> tuple[dict[str, LeafAxes], bool]:
    """Returns the axes of every array leaf by path, and whether no head was found."""
    program = trace(fn, params, args, kwargs)
    uses, roles = program.uses, find_roles(program)
    axes = {
        path: _decide(uses[path], shape, roles.by_leaf.get(path))
        for path, shape in array_shapes(flatten(params).by_path).items()
    }
    return axes, roles.lacks_head


def _decide(uses: Sequence[Use], shape: tuple[int, ...], role: Role | None) -> LeafAxes:
    products = [use for use in uses if use.kind == "contraction"]
    lost = [use.reason or use.primitive for use in uses if use.kind == "lost"]
    if any(use.kind == "gather" for use in uses):
        tied = " and contracted (tied embedding)" if products else ""
        return LeafAxes(reason=f"gathered{tied}")
    if lost:
        return LeafAxes(reason=f"not followed through {lost[0]}")
    if not products:
        return LeafAxes(reason=NOT_AN_OPERAND if uses else "not used by fn")
    for use in products:
        if use.group is None:
            return LeafAxes(reason=use.reason)
    groups = sorted({use.group for use in products if use.group is not None})
    if len(groups) > 1:
        axes = " and ".join(map(str, groups))
        return LeafAxes(reason=f"contracted along axes {axes} by different products")
    first = products[0]
    return LeafAxes(
        group=groups[0],
        contracted=first.contracted,
        output=first.output,
        batch=tuple(axis for axis in first.batch if shape[axis] > 1),
        alignment=math.gcd(*(use.alignment for use in products)),
        note="until merged" if any(use.merged for use in products) else "",
        role=role,
    )
