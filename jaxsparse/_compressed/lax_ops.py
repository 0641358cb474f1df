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
from jaxsparse._compressed.nm_matmul import Implementation, no_kernel_reason
from jaxsparse._compressed.nm_matmuls import nm_matmuls
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


def dot_generals(
    eqns: Sequence[JaxprEqn],
    operands: Sequence[Sequence[Any]],
    options: MatmulOptions,
) -> list[Array | None]:
    """Computes `dot_general`s by `nm_matmul`, or returns None to decompress instead.

    The kernel takes any contracted axes that include the group axis, and any other
    axes, as in the projections of attention. If the kernel is not used, of weights that
    are not quantized only products by a matrix are computed here: XLA shards the others
    better by itself.

    Args:
      eqns: the equations. Those that contract the same axes of the same array run in
        one launch if possible.
      operands: the left and the right operand of each. At least one is compressed.
      options: as in `nm_matmul`.

    Returns:
      For each equation its output, or None.

    Raises:
      ValueError: the implementation is `"cuda"`, but the kernel is not available; or
        activations are to be quantized, but `nm_matmul` cannot compute a product.
    """
    products = [_product(*each, options) for each in zip(eqns, operands, strict=True)]
    outputs: list[Array | None] = [None] * len(products)
    alike: dict[Any, list[int]] = {}
    for i, product in enumerate(products):
        if product is not None:
            alike.setdefault(product.key, []).append(i)
    for indices in alike.values():
        some = [p for i in indices if (p := products[i]) is not None]
        weights = [product.matrix for product in some]
        results = nm_matmuls(some[0].rows(), weights, **options._asdict())
        for i, product, result in zip(indices, some, results, strict=True):
            outputs[i] = product.output(result)
    return outputs


class _Product(NamedTuple):
    """A product that `nm_matmul` can compute.

    Attributes:
      key: equal for products that contract the same axes of the same array.
      operands: the operands, with the group axis last among the contracted axes.
      matrix: the weight as `[k, out]`.
      weight_is_rhs: whether the weight is the right operand.
    """

    key: Any
    operands: _Operands
    matrix: Compressed
    weight_is_rhs: bool

    def rows(self) -> Array:
        """Returns the other operand as `[..., k]`."""
        _, x, _, x_axes = self.operands
        outer = [i for i in range(x.ndim) if i not in x_axes]
        rows = x.transpose((*outer, *x_axes))
        return rows.reshape(*rows.shape[: len(outer)], self.matrix.shape[0])

    def output(self, product: Array) -> Array:
        """Returns the product `[..., out]` as the equation does."""
        weight, _, weight_axes, _ = self.operands
        outer = product.ndim - 1
        outputs = [n for i, n in enumerate(weight.shape) if i not in weight_axes]
        product = product.reshape(*product.shape[:-1], *outputs)
        if self.weight_is_rhs:
            return product
        return jnp.moveaxis(product, range(outer), range(-outer, 0))


def _product(
    eqn: JaxprEqn, pair: Sequence[Any], options: MatmulOptions
) -> _Product | None:
    lhs, rhs = jax.tree.map(jnp.asarray, tuple(pair))
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
    key = id(pair[0] if weight_is_rhs else pair[1]), operands.x_axes
    return _Product(key, operands, matrix, weight_is_rhs)


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
