"""Axes of a leaf from the trace of the function that uses it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import PyTree

from jaxsparse._plans.leaf_axes import LeafAxes
from jaxsparse._trace import (
    AbstractValue,
    Record,
    Use,
    trace,
)
from jaxsparse._trees import array_shapes, flatten, map_named


def contraction_axes(
    fn: Callable[..., Any], params: PyTree, *args: Any, **kwargs: Any
) -> PyTree:
    """The group axis of every leaf, as `fn(params, *args, **kwargs)` contracts it.

    The function is traced and not run: nothing is computed, and shapes are enough.
    Rules, sizes and the exception for heads come later, in `plan_sparsity`.

    Args:
      fn: any JAX function of the parameters: a forward pass or a loss.
      params: a tree of arrays or `jax.ShapeDtypeStruct`.
      *args: further arguments; arrays may be `jax.ShapeDtypeStruct`, whatever is no
        array is handed over as it is.
      **kwargs: further arguments by name.

    Returns:
      A tree like `params`: an axis, or None where the trace shows no single one.

    Raises:
      ValueError: two leaves have one path; besides what `fn` raises when traced.

    >>> import jax
    >>> shape = lambda *s: jax.ShapeDtypeStruct(s, "float32")
    >>> fn = lambda params, x: jax.numpy.einsum("bd,hdk->bhk", x, params["w"])
    >>> contraction_axes(fn, {"w": shape(4, 16, 8)}, shape(2, 16))
    {'w': 1}
    """
    axes = axes_from_trace(fn, params, args, kwargs)
    return map_named(lambda path, _: axes[path].group if path in axes else None, params)


def leaf_uses(
    fn: Callable[..., Any], params: PyTree, *args: Any, **kwargs: Any
) -> dict[str, tuple[Use, ...]]:
    """Every use that `fn(params, *args, **kwargs)` makes of each leaf.

    This is what `plan_sparsity` decides from: for each use the operation, the leaf's
    contracted, batch and output axes, the shape of the other operand and the line of
    the program.

    Args:
      fn: any JAX function of the parameters.
      params: a tree of arrays or `jax.ShapeDtypeStruct`.
      *args: further arguments.
      **kwargs: further arguments by name.

    Returns:
      The uses by canonical path; none for a leaf that `fn` does not use.

    Raises:
      ValueError: as `contraction_axes`.

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
) -> dict[str, LeafAxes]:
    """The axes of every array leaf by canonical path."""
    program = trace(fn, params, args, kwargs)
    uses, heads = program.uses, _heads(program.record, program.results)
    shapes = array_shapes(flatten(params).by_path).items()
    return {path: _decide(uses[path], shape, heads) for path, shape in shapes}


def _heads(record: Record, results: Sequence[AbstractValue]) -> set[frozenset[str]]:
    """The products that are output layers.

    No other product with parameters follows, some precede, and to each result that it
    reaches no other gets without passing through it.
    """
    heads = set()
    for node in record.before - record.after:
        reached = [result for result in results if node in result.frontier]
        if reached and all(result.frontier == {node} for result in reached):
            heads.add(node)
    return heads


def _decide(
    uses: Sequence[Use], shape: tuple[int, ...], heads: set[frozenset[str]]
) -> LeafAxes:
    products = [use for use in uses if use.kind == "contraction"]
    lost = [use for use in uses if use.kind == "lost"]
    if any(use.kind == "gather" for use in uses):
        tied = " and contracted (tied embedding)" if products else ""
        return LeafAxes(reason=f"gathered{tied}")
    if lost:
        return LeafAxes(reason=f"lost at {lost[0].reason or lost[0].primitive}")
    if not products:
        return LeafAxes(reason="only elementwise" if uses else "not used by fn")
    for use in products:
        if use.group is None:
            return LeafAxes(reason=use.reason)
    groups = sorted({use.group for use in products if use.group is not None})
    if len(groups) > 1:
        text = " and ".join(map(str, groups))
        return LeafAxes(reason=f"contracted along axes {text} in different places")
    first = products[0]
    return LeafAxes(
        group=groups[0],
        contracted=first.contracted,
        output=first.output,
        batch=tuple(axis for axis in first.batch if shape[axis] > 1),
        alignment=math.gcd(*(use.alignment for use in products)),
        note="until merged" if any(use.merged for use in products) else "",
        head=all(use.node in heads for use in products),
    )
