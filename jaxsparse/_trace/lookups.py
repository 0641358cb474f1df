"""One-hot values: a product with one is a lookup.

`one_hot(tokens, size) @ embedding` compares integers with `0, 1, 2, ...` and contracts
the axis along which those count. It reads one row for each token, as
`embedding[tokens]` does.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from jax.extend.core import JaxprEqn

from jaxsparse._trace.jaxpr import var_shape
from jaxsparse._trace.record import AbstractValue


#: Operations that keep both what counts and what is one-hot.
_COPIES = frozenset(
    [
        "convert_element_type",
        "copy",
        "copy_p",
        "optimization_barrier",
        "reduce_precision",
        "sharding_constraint",
        "stop_gradient",
    ]
)


def one_hot_output(
    eqn: JaxprEqn, inputs: Sequence[AbstractValue], output: AbstractValue
) -> AbstractValue:
    """Returns what is known about an output, with the axes that count or are one-hot.

    Args:
      eqn: an equation with one output.
      inputs: what is known about its inputs.
      output: what else is known about its output.
    """
    name = eqn.primitive.name
    if name == "iota":
        return output._replace(counts=int(eqn.params["dimension"]))
    if name == "eq":
        return output._replace(one_hot=_compared(inputs))
    if name in ("add", "sub"):
        # Positions that start elsewhere, or sums of lookups, such as of two tokens.
        left, right = inputs
        counts = [value.counts for value in inputs if value.counts is not None]
        scalar = any(not var_shape(var) for var in eqn.invars)
        both = left.one_hot if left.one_hot == right.one_hot else None
        return output._replace(
            counts=counts[0] if counts and scalar else None, one_hot=both
        )
    if name in ("mul", "and", "select_n", "div"):
        return output._replace(one_hot=_masked(name, inputs))
    if name in _COPIES:
        move = lambda axis: axis
    elif name in _MOVES:
        move = lambda axis: _MOVES[name](eqn, axis)
    else:
        return output
    first = inputs[0]
    moved = [None if a is None else move(a) for a in (first.counts, first.one_hot)]
    return output._replace(counts=moved[0], one_hot=moved[1])


def shift_axes(value: AbstractValue, by: int) -> AbstractValue:
    """Returns what is known after a scan takes the first axis away (-1) or adds it."""
    shift = lambda axis: None if axis is None or axis + by < 0 else axis + by
    return value._replace(counts=shift(value.counts), one_hot=shift(value.one_hot))


def is_lookup(one_hot: int | None, contracted: Sequence[int], shape: Any) -> bool:
    """Returns whether a product contracts a one-hot axis of an operand, and no other.

    Args:
      one_hot: the one-hot axis of the operand, or None.
      contracted: the axes of the operand that are contracted.
      shape: the shape of the operand.
    """
    return one_hot is not None and [i for i in contracted if shape[i] > 1] == [one_hot]


def _compared(inputs: Sequence[AbstractValue]) -> int | None:
    """Returns the one-hot axis of a comparison: that along which one operand counts.

    In a comparison of two that count, an identity matrix, it is the last one.
    """
    counts = [value.counts for value in inputs if value.counts is not None]
    return max(counts) if len(set(counts)) == len(counts) and counts else None


def _masked(name: str, inputs: Sequence[AbstractValue]) -> int | None:
    """Returns the one-hot axis of a product: zeros of a one-hot factor stay zeros."""
    if name == "select_n":
        which, *cases = inputs
        if cases[0].zero and which.one_hot is not None:  # `where(one_hot, x, 0)`
            return which.one_hot
        inputs = [case for case in cases if not case.zero]
        return inputs[0].one_hot if len(inputs) == 1 else None
    if name == "div":
        inputs = inputs[:1]
    axes = [value.one_hot for value in inputs if value.one_hot is not None]
    return axes[0] if axes else None


def _broadcast(eqn: JaxprEqn, axis: int) -> int | None:
    return int(eqn.params["broadcast_dimensions"][axis])


def _gather(eqn: JaxprEqn, axis: int) -> int | None:
    """Rows of a one-hot matrix, such as `eye(size)[tokens]`, are one-hot."""
    numbers = eqn.params["dimension_numbers"]
    removed = (
        *numbers.collapsed_slice_dims,
        *getattr(numbers, "operand_batching_dims", ()),
    )
    rest = [i for i in range(len(var_shape(eqn.invars[0]))) if i not in removed]
    whole = eqn.params["slice_sizes"][axis] == var_shape(eqn.invars[0])[axis]
    if axis not in rest or not whole:
        return None
    return int(numbers.offset_dims[rest.index(axis)])


def _reduce(eqn: JaxprEqn, axis: int) -> int | None:
    """A sum of one-hot values counts tokens: a bag of words."""
    axes = eqn.params["axes"]
    return None if axis in axes else axis - sum(i < axis for i in axes)


def _reshape(eqn: JaxprEqn, axis: int) -> int | None:
    if eqn.params["dimensions"] is not None:
        return None
    old, new = var_shape(eqn.invars[0]), var_shape(eqn.outvars[0])
    for i, size in enumerate(new):
        if size == old[axis] and prod(new[:i]) == prod(old[:axis]):
            return i
    return None


def _squeeze(eqn: JaxprEqn, axis: int) -> int | None:
    axes = eqn.params["dimensions"]
    return None if axis in axes else axis - sum(i < axis for i in axes)


def _transpose(eqn: JaxprEqn, axis: int) -> int | None:
    return [int(i) for i in eqn.params["permutation"]].index(axis)


#: `(equation, axis of the first operand) -> axis of the output`, or None.
_MOVES: dict[str, Callable[[JaxprEqn, int], int | None]] = {
    "broadcast_in_dim": _broadcast,
    "dynamic_slice": lambda _, axis: axis,
    "gather": _gather,
    "reduce_sum": _reduce,
    "reshape": _reshape,
    "slice": lambda _, axis: axis,
    "squeeze": _squeeze,
    "transpose": _transpose,
}
