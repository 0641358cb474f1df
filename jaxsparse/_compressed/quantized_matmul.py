"""Products with quantized weights by XLA, rounded as the kernel rounds them."""

from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxsparse._compressed.compressed_array import Compressed, decompress
from jaxsparse._compressed.eight_bits import round_to_eight_bits, scales_of
from jaxsparse._patterns import wide_float


def weight_only_matmul(
    x: Float[Array, "... k"], weight: Compressed
) -> Float[Array, "... out"]:
    """Returns `x @ decompress(weight)`, accumulated in float32 and rounded once.

    Args:
      x: of floats of 16 bits or more, which hold all numbers of eight bits.
      weight: a quantized weight of shape `[k, out]`.
    """
    wide = wide_float(x.dtype)
    if weight.scales.shape[0] == 1:
        product = _dot(x, _dense_values(weight, x.dtype), wide)
        return (product * _output_scales(weight, x.ndim).astype(wide)).astype(x.dtype)
    # The sums of each group apart would take a result for each group.
    dense = decompress(replace(weight, quantized_from=wide))
    precision = lax.Precision.HIGHEST
    return _dot(x.astype(wide), dense, wide, precision).astype(x.dtype)


def quantized_rows_matmul(
    x: Float[Array, "... k"], weight: Compressed
) -> Float[Array, "... out"]:
    """Returns the product with each row of `x` quantized like the weight.

    Sums are in int32 for int8, and otherwise in float32, as are the products by both
    scales.

    Args:
      x: of floats.
      weight: a quantized weight of shape `[k, out]` with one scale for each output.
    """
    rows, row_scales = quantize_rows(x, weight.values.dtype)
    return multiply_quantized_rows(rows, row_scales, weight).astype(x.dtype)


def quantize_rows(
    x: Float[Array, "... k"], dtype: DTypeLike, mesh_axes: Sequence[str] = ()
) -> tuple[Array, Float[Array, "... 1"]]:
    """Returns rows in eight bits and their float32 scales, by their largest magnitude.

    Args:
      x: of floats.
      dtype: int8 or float8_e4m3fn.
      mesh_axes: those that shard `k`, where `x` is a shard.
    """
    wide = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=-1, keepdims=True)
    if mesh_axes:
        largest = lax.pmax(largest, tuple(mesh_axes))
    scales = scales_of(largest, dtype)
    return round_to_eight_bits(wide, scales, dtype), scales


def multiply_quantized_rows(
    rows: Array, row_scales: Float[Array, "... 1"], weight: Compressed
) -> Float[Array, "... out"]:
    """Returns the product of quantized rows in float32.

    Args:
      rows: `[..., k]`, of the dtype of the weight's values.
      row_scales: of the rows.
      weight: a quantized weight of shape `[k, out]` with one scale for each output.
    """
    dtype = weight.values.dtype
    if jnp.issubdtype(dtype, jnp.integer):
        product = _dot(rows, _dense_values(weight, dtype), jnp.dtype(jnp.int32))
    else:  # products of float8 are exact in bfloat16 times bfloat16
        half = jnp.dtype(jnp.bfloat16)
        dense = _dense_values(weight, half)
        product = _dot(rows.astype(half), dense, jnp.dtype(jnp.float32))
    product = product.astype(jnp.float32) * row_scales
    return product * _output_scales(weight, rows.ndim)


def _output_scales(weight: Compressed, ndim: int) -> Array:
    """Returns one scale for each output, with the rank of the product."""
    return lax.expand_dims(weight.scales[0], range(ndim - 1))


def _dense_values(weight: Compressed, dtype: jnp.dtype) -> Array:
    values = weight.values.astype(dtype)
    return decompress(replace(weight, values=values, scales=None, quantized_from=None))


def _dot(
    x: Array,
    w: Array,
    accumulator: jnp.dtype,
    precision: lax.Precision | None = None,
) -> Array:
    return lax.dot_general(
        x,
        w,
        (([x.ndim - 1], [0]), ((), ())),
        precision=precision,
        preferred_element_type=accumulator,
    )
