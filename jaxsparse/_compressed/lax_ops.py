"""Transpose, reshape and `dot_general` of compressed weights as they are stored."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn
from jaxtyping import Array

from jaxsparse._compressed.compressed_array import (
    Compressed,
    compressed_shapes,
    is_compressed,
)
from jaxsparse._compressed.indices import code_bits
from jaxsparse._compressed.nm_matmul import (
    Implementation,
    nm_matmul,
    no_kernel_reason,
)
from jaxsparse._sharding import is_automatic


def transpose(weight: Compressed, permutation: Sequence[int]) -> Compressed:
    """Returns the weight with its axes permuted."""
    axis = list(permutation).index(weight.axis + weight.ndim) - weight.ndim
    moved = jax.tree.map(lambda x: x.transpose(permutation), weight)
    return replace(moved, axis=axis)


def reshape(weight: Compressed, shape: tuple[int, ...]) -> Compressed | None:
    """Returns the weight with another shape, or None if it must be decompressed.

    It is reshaped if no group and no byte of `indices` is split between two indices of
    another axis.
    """
    old_shape, pattern = weight.shape, weight.pattern
    trailing = math.prod(old_shape[weight.axis + weight.ndim + 1 :])
    group_axes = [
        axis
        for axis, size in enumerate(shape)
        if size > 1 and math.prod(shape[axis + 1 :]) == trailing
    ]
    if math.prod(shape) != math.prod(old_shape) or not group_axes:
        return None
    axis = group_axes[0]
    for size in (old_shape[weight.axis], shape[axis]):
        if size % pattern.m or size // pattern.m * code_bits(pattern) % 8:
            return None
    values, indices = compressed_shapes(shape, pattern, axis)
    return replace(
        weight,
        values=weight.values.reshape(values),
        indices=weight.indices.reshape(indices),
        scales=_reshape_scales(weight, shape, axis) if weight.is_quantized else None,
        axis=axis - len(shape),
    )


def _reshape_scales(weight: Compressed, shape: tuple[int, ...], axis: int) -> Array:
    """Returns the scales of a weight that is reshaped, given its new group axis."""
    old_axis = weight.axis % weight.ndim
    *leading, k = weight.shape[: old_axis + 1]
    trailing = weight.shape[old_axis + 1 :]
    scales = weight.scales
    groups = scales.shape[old_axis]
    if math.prod(scales.shape[: old_axis + 1]) == 1:  # one for each output
        scales = jnp.broadcast_to(scales, (*[1] * (old_axis + 1), *trailing))
        return scales.reshape(*[1] * (axis + 1), *shape[axis + 1 :])
    # As many inputs have a scale as share one before and after.
    size = math.gcd(k // groups, shape[axis])
    scales = jnp.expand_dims(scales, old_axis + 1)
    repeats = k // groups // size
    scales = jnp.broadcast_to(scales, (*leading, groups, repeats, *trailing))
    return scales.reshape(*shape[:axis], shape[axis] // size, *shape[axis + 1 :])


class _Operands(NamedTuple):
    """The operands of a `dot_general` and their contracted axes."""

    weight: Any
    x: Any
    weight_axes: tuple[int, ...]
    x_axes: tuple[int, ...]


class MatmulOptions(NamedTuple):
    """How matmuls with compressed weights are computed, as in `nm_matmul`."""

    implementation: Implementation | None
    quantize_activations: bool


def dot_general(
    eqn: JaxprEqn, lhs: Any, rhs: Any, options: MatmulOptions
) -> Array | None:
    """Computes a `dot_general` by `nm_matmul`, or returns None to decompress instead.

    The kernel takes any contracted axes that include the group axis, and any other
    axes, as in the projections of attention. If the kernel is not used, of weights that
    are not quantized only products by a matrix are computed here: XLA shards the others
    better by itself.

    Args:
      eqn: the equation.
      lhs: its left operand.
      rhs: its right operand. At least one of the two is compressed.
      options: as in `nm_matmul`.

    Raises:
      ValueError: the implementation is `"cuda"`, but the kernel is not available; or
        activations are to be quantized, but `nm_matmul` cannot compute the product.
    """
    lhs, rhs = jax.tree.map(jnp.asarray, (lhs, rhs))
    (lhs_axes, rhs_axes), _ = eqn.params["dimension_numbers"]
    weight_is_rhs = is_compressed(rhs)
    if weight_is_rhs:
        operands = _Operands(rhs, lhs, tuple(rhs_axes), tuple(lhs_axes))
    else:
        operands = _Operands(lhs, rhs, tuple(lhs_axes), tuple(rhs_axes))
    matrix = None
    if not (reason := _unsupported_reason(eqn, operands, options)):
        operands = _move_group_axis_last(operands)
        matrix = _as_matrix(operands)
        reason = "" if matrix else "codes of an axis of the weight end within a byte"
    if matrix is None:
        shapes = f"{lhs.shape} and {rhs.shape}, contracted over {lhs_axes, rhs_axes}"
        if options.implementation == "cuda":
            raise ValueError(
                f"implementation 'cuda' is not available: {reason}; the operands have "
                f"shapes {shapes}: give 'xla' or None"
            )
        if options.quantize_activations:
            raise ValueError(
                f"activations cannot be quantized: {reason}; the operands have shapes "
                f"{shapes}: give quantize_activations=False"
            )
        return None
    if options.implementation != "cuda" and not _is_matrix_product(operands):
        uses_xla = options.implementation == "xla"
        uses_xla = uses_xla or no_kernel_reason(operands.x, matrix)
        if uses_xla and not matrix.is_quantized:
            return None
    return _multiply(operands, matrix, options, weight_is_rhs)


def _unsupported_reason(
    eqn: JaxprEqn, operands: _Operands, options: MatmulOptions
) -> str:
    """Returns why `nm_matmul` cannot compute the product, or an empty string."""
    weight, x, weight_axes, _ = operands
    params, output = eqn.params, cast(Any, eqn.outvars[0].aval)
    if is_compressed(x):
        return "both operands are compressed"
    if params["dimension_numbers"][1][0]:
        return "the product has batch axes"
    if weight.axis + weight.ndim not in weight_axes:
        return "groups lie along an axis that is not contracted"
    # nm_matmul returns int32 for narrower integers, dot_general their own dtype.
    if not jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4:
        return f"the dtype is {x.dtype}"
    if not x.dtype == weight.dtype == output.dtype:
        return f"the product of {x.dtype} and {weight.dtype} must be {output.dtype}"
    if params["out_sharding"] is not None:
        return "the product specifies an output sharding"
    automatic = is_automatic(x) and is_automatic(weight.values)
    if not (automatic or _is_matrix_product(operands)):
        return "a mesh has axes that are not automatic"
    precision = params["precision"]
    exact = options.quantize_activations  # products of eight bits are
    if not (exact or precision is None or _is_met_by_float32(precision, x.dtype)):
        return f"the product specifies precision {precision}"
    return ""


def _is_matrix_product(operands: _Operands) -> bool:
    return operands.weight.ndim == 2 and len(operands.weight_axes) == 1


def _is_met_by_float32(precision: Any, dtype: Any) -> bool:
    """Returns whether exact products, accumulated in float32, meet the precision."""
    precisions = precision if isinstance(precision, tuple) else (precision,)
    are_enums = all(isinstance(p, lax.Precision) for p in precisions)
    return are_enums and dtype in (jnp.bfloat16, jnp.float16)


def _move_group_axis_last(operands: _Operands) -> _Operands:
    """Returns the operands with the group axis last among the contracted axes."""
    weight, x, weight_axes, x_axes = operands
    i = weight_axes.index(weight.axis + weight.ndim)

    def move(axes: tuple[int, ...]) -> tuple[int, ...]:
        return (*axes[:i], *axes[i + 1 :], axes[i])

    return _Operands(weight, x, move(weight_axes), move(x_axes))


def _as_matrix(operands: _Operands) -> Compressed | None:
    """Returns the weight as `[k, out]`, its contracted axes merged into `k`."""
    weight, axes = operands.weight, operands.weight_axes
    permutation = (*axes, *(i for i in range(weight.ndim) if i not in axes))
    if permutation != tuple(range(weight.ndim)):
        weight = transpose(weight, permutation)
    if _is_matrix_product(operands):
        return weight
    k = math.prod(weight.shape[: len(axes)])
    return reshape(weight, (k, math.prod(weight.shape[len(axes) :])))


def _multiply(
    operands: _Operands,
    matrix: Compressed,
    options: MatmulOptions,
    weight_is_rhs: bool,
) -> Array:
    weight, x, weight_axes, x_axes = operands
    outer_axes = [i for i in range(x.ndim) if i not in x_axes]
    tokens = x.transpose((*outer_axes, *x_axes))
    tokens = tokens.reshape(*tokens.shape[: len(outer_axes)], matrix.shape[0])
    product = nm_matmul(tokens, matrix, **options._asdict())
    outputs = [size for i, size in enumerate(weight.shape) if i not in weight_axes]
    product = product.reshape(*tokens.shape[:-1], *outputs)
    if weight_is_rhs:
        return product
    outer = len(outer_axes)
    return jnp.moveaxis(product, range(outer), range(-outer, 0))
