"""What a compressed weight does as it is: be transposed, reshaped, multiplied by."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxsparse._compressed import cuda_matmul
from jaxsparse._compressed.compressed_array import (
    Compressed,
    compressed_shapes,
    is_compressed,
)
from jaxsparse._compressed.indices import code_bits
from jaxsparse._compressed.nm_matmul import nm_matmul
from jaxsparse._sharding import is_automatic


def transposed(weight: Compressed, order: Sequence[int]) -> Compressed:
    """The weight with its axes in another order."""
    axis = list(order).index(weight.axis + weight.ndim) - weight.ndim
    values, indices = weight.values.transpose(order), weight.indices.transpose(order)
    return Compressed(values, indices, weight.pattern, axis)


def reshaped(weight: Compressed, shape: tuple[int, ...]) -> Compressed | None:
    """The weight in another shape, if its groups stay whole and codes whole bytes."""
    old, pattern = weight.shape, weight.pattern
    behind = math.prod(old[weight.axis + weight.ndim + 1 :])
    fits = [
        i
        for i, size in enumerate(shape)
        if size > 1 and math.prod(shape[i + 1 :]) == behind
    ]
    if math.prod(shape) != math.prod(old) or not fits:
        return None
    axis, bits = fits[0], code_bits(pattern)
    sizes = old[weight.axis], shape[axis]
    whole = all(size % pattern.m == 0 for size in sizes)
    if not whole or any(size // pattern.m * bits % 8 for size in sizes):
        return None
    values, indices = compressed_shapes(shape, pattern, axis)
    return Compressed(
        weight.values.reshape(values),
        weight.indices.reshape(indices),
        pattern,
        axis - len(shape),
    )


class _Operands(NamedTuple):
    """Of a `dot_general`: the weight, the other, and their axes that are contracted."""

    weight: Any
    x: Any
    mine: tuple[int, ...]
    others: tuple[int, ...]


def dot_general(eqn, left: Any, right: Any, implementation: str | None) -> Array | None:
    """A `dot_general` by `nm_matmul`, or None where it is better left as it is.

    For the kernel any axes may be contracted, the groups' among them, and any others be
    left, as in the projections of attention. Where XLA multiplies, products other than
    by a matrix are left as they are: it knows better how to cut them over devices.

    Raises:
      ValueError: where the kernel cannot be had, if the implementation is `"cuda"`.
    """
    left, right = jax.tree.map(jnp.asarray, (left, right))
    contracted, _ = eqn.params["dimension_numbers"]
    on_the_right = is_compressed(right)
    mine, others = contracted[::-1] if on_the_right else contracted
    both = (right, left) if on_the_right else (left, right)
    operands, matrix = _Operands(*both, tuple(mine), tuple(others)), None
    if not (reason := _why_not(eqn, operands)):
        operands = _groups_last(operands)
        matrix = _as_matrix(operands)
        reason = "" if matrix else "codes of an axis of the weight end within a byte"
    if matrix is None and implementation == "cuda":
        raise ValueError(
            f"implementation 'cuda' cannot be had: {reason}; the product is of shapes "
            f"{left.shape} and {right.shape}, axes {contracted}: give 'xla', or None "
            "to take what there is"
        )
    if matrix is None:
        return None
    by_xla = implementation == "xla" or cuda_matmul.unsupported_reason(
        operands.x, matrix
    )
    if implementation != "cuda" and by_xla and not _is_matrix(operands):
        return None
    return _multiply(operands, matrix, implementation, on_the_right)


def _why_not(eqn, operands: _Operands) -> str:
    weight, x, mine, _ = operands
    params, dtype = eqn.params, eqn.outvars[0].aval.dtype
    if is_compressed(x):
        return "both operands are compressed"
    if params["dimension_numbers"][1][0]:
        return "the product has batch axes"
    if weight.axis + weight.ndim not in mine:
        return "groups lie along an axis that is not contracted"
    # Products of narrow integers would come back wider.
    if not jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4:
        return f"the dtype is {x.dtype}"
    if not x.dtype == weight.dtype == dtype:
        return f"{x.dtype} by {weight.dtype} is to give {dtype}"
    if params["out_sharding"] is not None:
        return "the product asks for a sharding"
    automatic = is_automatic(x) and is_automatic(weight.values)
    if not (automatic or _is_matrix(operands)):
        return "a mesh has axes that are not automatic"
    if params["precision"] is not None and not _is_exact(params["precision"], x.dtype):
        return f"the product asks for precision {params['precision']}"
    return ""


def _is_matrix(operands: _Operands) -> bool:
    return operands.weight.ndim == 2 and len(operands.mine) == 1


def _is_exact(precision: Any, dtype: Any) -> bool:
    """Whether exact products, added up in float32, are all that it asks for."""
    asked = precision if isinstance(precision, tuple) else (precision,)
    named = all(isinstance(one, lax.Precision) for one in asked)
    return named and dtype in (jnp.bfloat16, jnp.float16)


def _groups_last(operands: _Operands) -> _Operands:
    """The same with the axis of the groups as the last that is contracted."""
    weight, x, mine, others = operands
    at = mine.index(weight.axis + weight.ndim)
    last = lambda axes: (*axes[:at], *axes[at + 1 :], axes[at])
    return _Operands(weight, x, last(mine), last(others))


def _as_matrix(operands: _Operands) -> Compressed | None:
    """`[k, out]`, where all that is contracted is one axis and all else the other."""
    weight, mine = operands.weight, operands.mine
    order = (*mine, *(i for i in range(weight.ndim) if i not in mine))
    if order != tuple(range(weight.ndim)):
        weight = transposed(weight, order)
    if _is_matrix(operands):
        return weight
    k = math.prod(weight.shape[: len(mine)])
    return reshaped(weight, (k, math.prod(weight.shape[len(mine) :])))


def _multiply(
    operands: _Operands,
    matrix: Compressed,
    implementation: str | None,
    on_the_right: bool,
) -> Array:
    weight, x, mine, others = operands
    outer = [i for i in range(x.ndim) if i not in others]
    rows = x.transpose((*outer, *others))
    rows = rows.reshape(*rows.shape[: len(outer)], matrix.shape[0])
    found = nm_matmul(rows, matrix, implementation=implementation)
    kept = [size for i, size in enumerate(weight.shape) if i not in mine]
    found = found.reshape(*rows.shape[:-1], *kept)
    if on_the_right:
        return found
    return jnp.moveaxis(found, range(len(outer)), range(-len(outer), 0))
