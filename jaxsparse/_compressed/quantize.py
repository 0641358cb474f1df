"""Quantizes the values of a compressed weight to eight bits."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float32

from jaxsparse._compressed.compressed_array import Compressed, decompress
from jaxsparse._compressed.eight_bits import (
    LARGEST,
    absmax_scales,
    as_eight_bits,
    is_wide_float,
    round_to_eight_bits,
)
from jaxsparse._patterns import merge_groups, split_groups
from jaxsparse._sharding import gather_groups
from jaxsparse._trees import is_abstract, require_kind


#: The parts of the largest magnitude that `scales="mse"` tries, the whole first.
_SHRINKAGES = np.linspace(1.0, 0.7, 31, dtype=np.float32)


def quantize_compressed(
    compressed: Compressed,
    dtype: DTypeLike = "int8",
    *,
    group_size: int | None = None,
    scales: Literal["absmax", "mse"] | None = None,
    contracted: Sequence[int] = (),
    importances: ArrayLike | None = None,
) -> Compressed:
    """Returns the compressed weight with values of eight bits and float32 scales.

    Quantization is symmetric, so pruned weights stay zero: a value is `w * (1 / scale)`
    in float32, rounded to the nearest number of the format, ties to even. Finite
    weights stay finite. No scale is below 2 ** -126, since devices take subnormal
    numbers for zeros; so weights below half of that become zeros.

    Args:
      compressed: a compressed weight of floats of 16 bits or more.
      dtype: `"int8"`, of which -127 to 127 are used, or `"float8_e4m3fn"`.
      group_size: of how many inputs along the group axis the weights share a scale. The
        default is all: one scale for each output.
      scales: `"absmax"` maps the largest magnitude of each range to 127, or 448 for
        float8_e4m3fn. `"mse"` tries 31 scales from that one down to 0.7 times it, which
        clip the largest weights, and takes the one with the least squared error.
        `"mse"` is the default if there are importances.
      contracted: further axes that the matmul sums over, as in `LeafPlan`. Without
        `group_size`, weights along them share a scale too. Leave out a leading axis
        that you map over by `jax.vmap` or `lax.scan`: the scales have only one there,
        unless you repeat them by `jnp.broadcast_to`.
      importances: for `"mse"`, what the squared error of each weight is multiplied by,
        of the shape of the weight, such as the mean squares of its inputs on
        calibration data (`input_importances`). Only ratios among weights that share a
        scale matter. Where all of them are zero, errors count alike.

    Returns:
      The quantized weight, of the same shape and dtype. Its scales have the axes of its
      values; the group axis has one for each group of inputs, or one.

    Raises:
      TypeError: the weight is not compressed, has no values, or is not of floats of 16
        bits or more.
      ValueError: the weight is quantized already, empty, or has values that are NaN or
        infinite in float32 (if they are concrete; otherwise weights that would share
        their scale become NaN); another dtype or kind of scales; a group size that is
        not a multiple of the pattern's `m` or does not divide the inputs; or
        importances for `"absmax"`, of another shape, or, if they are concrete, negative
        or not finite.

    >>> from jaxsparse import compress, decompress
    >>> w = compress(jnp.array([[2.5], [0.0], [-63.5], [0.0]]), "2:4")
    >>> small = quantize_compressed(w, "int8")
    >>> small.values, small.scales
    (Array([[   5],
            [-127]], dtype=int8), Array([[0.5]], dtype=float32))
    >>> decompress(small)[:, 0]
    Array([  2.5,   0. , -63.5,   0. ], dtype=float32)
    """
    _check_weight(compressed)
    dtype = as_eight_bits(dtype)
    if scales is None:
        scales = "absmax" if importances is None else "mse"
    if scales not in ("absmax", "mse"):
        raise ValueError(f"scales must be 'absmax' or 'mse', got {scales!r}")
    axis = compressed.axis % compressed.ndim
    size = compressed.values.shape[axis]
    shared = {axis + 1}
    if group_size is None:
        shared |= {i + (i > axis) for i in _other_axes(compressed, contracted)}
    else:
        size = _values_in(compressed, group_size)
    if importances is not None:
        importances = _kept_importances(compressed, importances, scales)
    values, all_scales = _quantize(
        compressed.values,
        importances,
        dtype=dtype,
        size=size,
        axis=axis,
        shared=tuple(shared),
        shrinks=scales == "mse",
    )
    return replace(
        compressed, values=values, scales=all_scales, quantized_from=compressed.dtype
    )


@partial(jax.jit, static_argnames=("dtype", "size", "axis", "shared", "shrinks"))
def _quantize(
    values: Array,
    importances: Array | None,
    *,
    dtype: jnp.dtype,
    size: int,
    axis: int,
    shared: tuple[int, ...],
    shrinks: bool,
) -> tuple[Array, Float32[Array, "..."]]:
    """Returns quantized values and scales, given how many values share a scale."""
    weights = split_groups(gather_groups(values, size, axis), size, axis)
    weights = weights.astype(jnp.float32)
    scales = _without_overflow(absmax_scales(weights, dtype, shared), dtype)
    if shrinks:
        if importances is None:
            importances = jnp.ones_like(values, jnp.float32)
        importances = split_groups(gather_groups(importances, size, axis), size, axis)
        scales = _best_scales(weights, importances, scales, dtype, shared)
    values = merge_groups(round_to_eight_bits(weights, scales, dtype), axis)
    return values, jnp.squeeze(scales, axis + 1)


def _without_overflow(scales: Array, dtype: jnp.dtype) -> Array:
    """Returns scales whose product with the largest number of the format is finite.

    That of the largest float32 is rounded up for int8, which would make the weight
    infinite. An infinite scale, of infinite weights, stays.
    """
    limit = np.float32(LARGEST[dtype.name])
    largest = np.finfo(np.float32).max / limit
    if np.float64(largest) * limit > np.finfo(np.float32).max:
        largest = np.nextafter(largest, np.float32(0))
    return jnp.where(jnp.isinf(scales), scales, jnp.minimum(scales, largest))


def _best_scales(
    weights: Array,
    importances: Array,
    largest: Array,
    dtype: jnp.dtype,
    shared: tuple[int, ...],
) -> Array:
    """Returns the scales with the least weighted error; of equals the largest."""
    highest = jnp.max(importances, shared, keepdims=True)
    alike = highest == 0
    shares = jnp.where(alike, 1, importances / jnp.where(alike, 1, highest))

    def squared_error(scales: Array) -> Array:
        quantized = round_to_eight_bits(weights, scales, dtype).astype(jnp.float32)
        errors = quantized - weights / scales  # in steps: their squares are no overflow
        in_steps = jnp.sum(shares * errors**2, shared, keepdims=True)
        return in_steps * (scales / largest) ** 2

    smallest = jnp.finfo(largest.dtype).smallest_normal

    def improve(best: tuple[Array, Array], shrinkage: Array):
        scales = jnp.maximum(largest * shrinkage, smallest)
        error = squared_error(scales)
        improved = error < best[1]
        scales = jnp.where(improved, scales, best[0])
        return (scales, jnp.where(improved, error, best[1])), None

    start = largest, squared_error(largest)
    return lax.scan(improve, start, jnp.asarray(_SHRINKAGES[1:]))[0][0]


def _kept_importances(weight: Compressed, importances: ArrayLike, kind: str) -> Array:
    """Returns the importances of the values, which they follow.

    Raises:
      ValueError: they do not fit the weight, or are negative or not finite.
    """
    importances = jnp.asarray(importances)
    given = f"importances of shape {importances.shape}"
    if kind == "absmax":
        raise ValueError(f"{given} do not change scales 'absmax': give scales='mse'")
    if importances.shape != weight.shape:
        raise ValueError(
            f"{given} do not fit a weight of shape {weight.shape}: give one for each "
            "weight, such as those of input_importances"
        )
    if not isinstance(importances, Tracer):
        with jax.ensure_compile_time_eval():
            is_valid = bool(jnp.all(jnp.isfinite(importances) & (importances >= 0)))
        if not is_valid:
            raise ValueError(
                f"{given} have values that are negative or not finite: give mean "
                "squares, such as those of input_importances"
            )
    values = jax.ShapeDtypeStruct(weight.values.shape, jnp.float32)
    # Decompressing is linear; its transpose gathers the positions of the values.
    gather_values = jax.linear_transpose(
        lambda values: decompress(replace(weight, values=values)), values
    )
    return gather_values(importances.astype(jnp.float32))[0]


def _check_weight(weight: Compressed) -> None:
    """Raises unless the weight can be quantized."""
    require_kind("quantize_compressed", weight, (Compressed,), "give compress(w)")
    shape = f"a weight of shape {weight.shape}"
    if weight.is_quantized:
        raise ValueError(
            f"{shape} is quantized to {weight.values.dtype} already: give the weight "
            "that it came from"
        )
    if not is_wide_float(weight.dtype):
        raise TypeError(
            f"{shape} and dtype {weight.dtype} cannot be quantized: give floats of 16 "
            "bits or more"
        )
    if 0 in weight.shape:
        raise ValueError(f"{shape} is empty: there is nothing to quantize")
    if is_abstract(weight.values):
        raise TypeError(
            f"{shape} has no values: give arrays, or call this within jax.eval_shape"
        )
    if isinstance(weight.values, Tracer):
        return
    with jax.ensure_compile_time_eval():  # the values are concrete, even under a trace
        finite = jnp.isfinite(jnp.asarray(weight.values).astype(jnp.float32))
        nonfinite = int(jnp.sum(~finite))
    if nonfinite:
        raise ValueError(
            f"{shape} has {nonfinite} NaN or infinite values in float32, which have no "
            "scale: repair them, or keep the weight unquantized"
        )


def _other_axes(weight: Compressed, contracted: Sequence[int]) -> set[int]:
    """Returns the contracted axes but for the group axis, as non-negative numbers."""
    if any(not -weight.ndim <= i < weight.ndim for i in contracted):
        raise ValueError(
            f"the contracted axes {tuple(contracted)} are out of range for a weight of "
            f"shape {weight.shape}"
        )
    return {i % weight.ndim for i in contracted} - {weight.axis % weight.ndim}


def _values_in(weight: Compressed, group_size: int) -> int:
    """Returns how many values a group of inputs has."""
    n, m, k = weight.pattern.n, weight.pattern.m, weight.shape[weight.axis]
    if group_size < 1 or group_size % m or k % group_size:
        raise ValueError(
            f"the {k} inputs of a weight of shape {weight.shape}, {weight.pattern} "
            f"along axis {weight.axis + weight.ndim}, cannot have scales for groups of "
            f"{group_size}: give a multiple of {m} that divides {k}"
        )
    return group_size // m * n
