"""`dot_general`s with compressed weights as products by `nm_matmul`."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn
from jax.sharding import AxisType
from jaxtyping import Array

from jaxsparse._compressed import kernel_support
from jaxsparse._compressed.compressed_array import Compressed, is_compressed
from jaxsparse._compressed.lax_ops import reshape, transpose
from jaxsparse._compressed.matmul_operands import (
    Operands,
    as_matrix,
    is_matrix_product,
    move_group_axis_last,
    stack_axes,
)
from jaxsparse._compressed.nm_matmul import Implementation
from jaxsparse._compressed.nm_matmuls import nm_matmuls
from jaxsparse._sharding import is_automatic
from jaxsparse._trace import var_shape


class Matmul(NamedTuple):
    """A `dot_general` that `nm_matmul` computes.

    Attributes:
      operands: the weight, the other operand, and their contracted axes, of which the
        group axis is the last.
      stack: further axes of the weight that stack matrices, for the same rows.
      matrix: the weight as `[k, out]`, after its batch axes and those.
      weight_is_rhs: whether the weight is the right operand.
    """

    operands: Operands
    stack: tuple[int, ...]
    matrix: Compressed
    weight_is_rhs: bool

    def rows(self) -> Array:
        """Returns the other operand as `[..., k]`, its batch axes first."""
        _, x, _, x_axes, _, batch = self.operands
        outer = [i for i in range(x.ndim) if i not in (*x_axes, *batch)]
        rows = x.transpose((*batch, *outer, *x_axes))
        return rows.reshape(*rows.shape[: -len(x_axes)], self.matrix.shape[-2])

    def decompresses(self) -> bool:
        """Returns whether XLA computes it by default, since it has too many rows."""
        pattern, rows = self.matrix.pattern, self.operands.rows()
        return kernel_support.decompresses(pattern, rows)

    def output(self, product: Array) -> Array:
        """Returns the product `[..., out]` as the equation does."""
        weight, _, weight_axes, _, batch, _ = self.operands
        taken = {*weight_axes, *batch, *self.stack}
        outer = range(len(batch) + len(self.stack), product.ndim - 1)
        outputs = [n for i, n in enumerate(weight.shape) if i not in taken]
        product = product.reshape(*product.shape[:-1], *outputs)
        first = len(batch) if self.weight_is_rhs else -len(outer)
        return jnp.moveaxis(product, outer, range(first, first + len(outer)))


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
    axes, as in the projections of attention, and stacks along batch axes, as of
    experts. If the kernel is not used, of weights that are not quantized only products
    by a matrix are computed here: XLA shards the others better by itself.

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
    outputs: list[Array | None] = [None] * len(eqns)
    alike: dict[Any, dict[int, Matmul]] = {}
    for i, (eqn, (lhs, rhs)) in enumerate(zip(eqns, operands, strict=True)):
        matmul = _wanted_matmul(eqn, lhs, rhs, options)
        if matmul is not None:
            x = lhs if matmul.weight_is_rhs else rhs
            axes = matmul.operands.x_axes, matmul.operands.x_batch
            stack = matmul.matrix.shape[:-2]
            alike.setdefault((id(x), axes, stack), {})[i] = matmul
    for matmuls in alike.values():
        results = multiply([*matmuls.values()], options)
        for i, result in zip(matmuls, results, strict=True):
            outputs[i] = result
    return outputs


def _wanted_matmul(
    eqn: JaxprEqn, lhs: Any, rhs: Any, options: MatmulOptions
) -> Matmul | None:
    """Returns a product by `nm_matmul`, or None where decompressing is as good.

    Raises:
      ValueError: as `dot_generals`.
    """
    matmul, reason = find_matmul(eqn, lhs, rhs, options, stacks=True)
    if matmul is None:
        if options.implementation == "cuda":
            raise ValueError(cuda_unavailable(eqn, reason))
        if options.quantize_activations:
            raise ValueError(
                f"activations cannot be quantized: {reason}; {_describe_product(eqn)}: "
                "give quantize_activations=False"
            )
        return None
    operands, matrix = matmul.operands, matmul.matrix
    if options.implementation != "cuda" and not is_matrix_product(operands):
        uses_xla = options.implementation == "xla"
        uses_xla = uses_xla or matmul.decompresses()
        uses_xla = uses_xla or kernel_support.unsupported_reason(operands.x, matrix)
        if uses_xla and not matrix.is_quantized:
            return None
    return matmul


def find_matmul(
    eqn: JaxprEqn, lhs: Any, rhs: Any, options: MatmulOptions, *, stacks: bool = False
) -> tuple[Matmul | None, str]:
    """Returns a `dot_general` as a product by `nm_matmul`, or None and why not.

    Args:
      eqn: the equation.
      lhs: its left operand.
      rhs: its right operand.
      options: as in `nm_matmul`.
      stacks: whether axes of the weight may stack matrices: batch axes, or others for
        the same rows.
    """
    lhs, rhs = jax.tree.map(jnp.asarray, (lhs, rhs))
    weight_is_rhs = is_compressed(rhs)
    order = -1 if weight_is_rhs else 1
    contracted, batch = (
        [tuple(axes) for axes in both[::order]]
        for both in eqn.params["dimension_numbers"]
    )
    operands = Operands(*(lhs, rhs)[::order], *contracted, *batch)
    if operands.x_batch and not stacks:
        return None, "the product has batch axes"
    if reason := _unsupported_reason(eqn, operands, options):
        return None, reason
    operands = move_group_axis_last(operands)
    stack = stack_axes(operands) if stacks else ()
    matrix = as_matrix(operands, stack)
    if matrix is None:
        return None, "codes of an axis of the weight end within a byte"
    return Matmul(operands, stack, matrix, weight_is_rhs), ""


def transposed_matrix(matmul: Matmul, other: Compressed) -> Compressed | None:
    """Returns the weight of a product as `[out, k]`, or None if bytes would be split.

    Args:
      matmul: the product.
      other: its weight with groups along an axis that it does not contract.
    """
    axes = matmul.operands.weight_axes
    outputs = tuple(i for i in range(other.ndim) if i not in axes)
    moved = transpose(other, (*outputs, *axes))
    return moved if moved.ndim == 2 else reshape(moved, matmul.matrix.shape[::-1])


def multiply(matmuls: Sequence[Matmul], options: MatmulOptions) -> list[Array]:
    """Computes products of the same rows by `nm_matmul`, in one launch if possible."""
    weights = [matmul.matrix for matmul in matmuls]
    multiply_rows = partial(nm_matmuls, **options._asdict())
    for _ in matmuls[0].stack:
        multiply_rows = jax.vmap(multiply_rows, (None, 0))
    for _ in matmuls[0].operands.x_batch:
        multiply_rows = jax.vmap(multiply_rows)
    products = multiply_rows(matmuls[0].rows(), weights)
    return [m.output(y) for m, y in zip(matmuls, products, strict=True)]


def cuda_unavailable(eqn: JaxprEqn, reason: str) -> str:
    """Returns the text of the error of a product that the kernel cannot compute."""
    return (
        f"implementation 'cuda' is not available: {reason}; {_describe_product(eqn)}: "
        "give 'xla' or None"
    )


def _describe_product(eqn: JaxprEqn) -> str:
    lhs, rhs = map(var_shape, eqn.invars)
    (lhs_axes, rhs_axes), _ = eqn.params["dimension_numbers"]
    axes = tuple(lhs_axes), tuple(rhs_axes)
    return f"the operands have shapes {lhs} and {rhs}, contracted over {axes}"


def _unsupported_reason(
    eqn: JaxprEqn, operands: Operands, options: MatmulOptions
) -> str:
    """Returns why `nm_matmul` cannot compute the product, or an empty string."""
    weight, x, weight_axes = operands[:3]
    params, output = eqn.params, cast(Any, eqn.outvars[0].aval)
    if is_compressed(x):
        return "both operands are compressed"
    if weight.axis + weight.ndim not in weight_axes:
        return "groups lie along an axis that is not contracted"
    # nm_matmul returns int32 for narrower integers, dot_general their own dtype.
    if not jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4:
        return f"the dtype is {x.dtype}"
    if not x.dtype == weight.dtype == output.dtype:
        dtypes = f"{x.dtype}, {weight.dtype} and {output.dtype}"
        return f"the input, the weight and the product have dtypes {dtypes}, not one"
    if not _is_left_open(params["out_sharding"]):
        return "the product specifies an output sharding"
    automatic = is_automatic(x) and is_automatic(weight.values)
    if not (automatic or is_matrix_product(operands)):
        return "a mesh has axes that are not automatic"
    precision = params["precision"]
    exact = options.quantize_activations  # products of eight bits are
    if not (exact or precision is None or _is_met_by_float32(precision, x.dtype)):
        return f"the product specifies precision {precision}"
    return ""


def _is_left_open(sharding: Any) -> bool:
    """Returns whether the compiler chooses the sharding of a product.

    The gradients of arrays on automatic axes of a mesh name that mesh.
    """
    types = () if sharding is None else sharding.mesh.axis_types
    return all(axis_type is AxisType.Auto for axis_type in types)


def _is_met_by_float32(precision: Any, dtype: Any) -> bool:
    """Returns whether exact products, accumulated in float32, meet the precision."""
    precisions = precision if isinstance(precision, tuple) else (precision,)
    are_enums = all(isinstance(p, lax.Precision) for p in precisions)
    return are_enums and dtype in (jnp.bfloat16, jnp.float16)
