"""Sizes of a leaf that keep it dense: groups that do not fit, and the size rule."""

import math

from jaxsparse._patterns import NM, Block, Channel, Pattern
from jaxsparse._plans.leaf_axes import LeafAxes
from jaxsparse._plans.plan_error import Remedy


def misfit(
    shape: tuple[int, ...],
    axes: LeafAxes,
    pattern: Pattern,
    sizes: tuple[int, int] | None,
) -> tuple[str, Remedy | None] | None:
    """Returns why the sizes of a leaf keep it dense, and the remedy, or None."""
    assert axes.group is not None
    match pattern:
        case NM(transposable=True) | Block() | Channel() if not axes.output:
            return "no output axis", None
        case NM(m=m, transposable=True) if shape[axes.output[-1]] % m:
            return f"axis {axes.output[-1]} is not divisible by {m}", "m"
        case NM(m=m):
            return _group_misfit(shape, axes, m) or _size_misfit(shape, axes, sizes)
        case Block(shape=(height, width)):
            for axis, size in ((axes.group, height), (axes.output[-1], width)):
                if shape[axis] % size:
                    return f"axis {axis} is not divisible by {size}", "block"
    return None


def _group_misfit(
    shape: tuple[int, ...], axes: LeafAxes, m: int
) -> tuple[str, Remedy] | None:
    axis = axes.group
    assert axis is not None
    if shape[axis] % m:
        return f"axis {axis} is not divisible by {m}", "m"
    if axes.alignment % m:
        return f"axis {axis} is split at multiples of {axes.alignment}, not of {m}", "m"
    return None


def _size_misfit(
    shape: tuple[int, ...], axes: LeafAxes, sizes: tuple[int, int] | None
) -> tuple[str, Remedy] | None:
    if sizes is None:
        return None
    outputs = math.prod(shape[axis] for axis in axes.output)
    inputs = math.prod(shape[axis] for axis in axes.contracted)
    for name, size, divisor in zip(
        ("outputs", "inputs"), (outputs, inputs), sizes, strict=True
    ):
        if size % divisor:
            problem = f"size rule: {size} {name} are not divisible by {divisor}"
            return problem, "sizes"
    return None
