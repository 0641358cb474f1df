"""Checks that the arrays of a compressed weight fit each other."""

from typing import Any

import jax.numpy as jnp

from jaxsparse._compressed.compressed_array import (
    Compressed,
    as_dense_shapes,
    compressed_shapes,
    is_compressed,
)
from jaxsparse._compressed.eight_bits import LARGEST, is_wide_float
from jaxsparse._trees import is_abstract, require_values


def array_fault(leaf: Compressed) -> str:
    """Returns how the arrays of a compressed weight do not fit, or an empty string.

    It reads shapes and dtypes only.

    Returns:
      A text that continues `the leaf is compressed with`.
    """
    expected = compressed_shapes(leaf.shape, leaf.pattern, leaf.axis)
    shapes = tuple(leaf.values.shape), tuple(leaf.indices.shape)
    if shapes != expected:
        return f"values and indices of shapes {shapes}, expected {expected}"
    if leaf.indices.dtype != jnp.uint8:
        return f"indices of {leaf.indices.dtype}, expected uint8"
    if leaf.is_quantized:
        return _quantization_fault(leaf)
    return "" if leaf.scales is None else "scales, but without quantized_from"


def require_fitting_arrays(leaf: Compressed, name: str) -> None:
    """Raises `ValueError` unless the arrays of a compressed weight fit each other."""
    if fault := array_fault(leaf):
        raise ValueError(describe_array_fault(leaf, name, fault))


def describe_array_fault(leaf: Compressed, name: str, fault: str) -> str:
    """Returns a text with the remedy."""
    return (
        f"{name} of shape {leaf.shape} is compressed with {fault}: change weights "
        "before they are compressed, or map over values alone, as in "
        "dataclasses.replace(leaf, values=...)"
    )


def require_stored_values(path: str, leaf: Any) -> None:
    """Raises as `require_values` does, also for a compressed leaf."""
    if is_compressed(leaf) and is_abstract(leaf.values):
        leaf = as_dense_shapes(leaf)
    require_values(path, leaf)


def _quantization_fault(leaf: Compressed) -> str:
    if leaf.values.dtype.name not in LARGEST:
        return f"quantized values of {leaf.values.dtype}, expected one of {[*LARGEST]}"
    if not is_wide_float(leaf.dtype):
        return f"values quantized from {leaf.dtype}, expected floats of 16 bits or more"
    if leaf.scales is None or leaf.scales.dtype != jnp.float32:
        kind = "no" if leaf.scales is None else leaf.scales.dtype
        return f"{kind} scales, expected float32"
    if not _scales_fit(leaf):
        return (
            f"scales of shape {tuple(leaf.scales.shape)}, expected one for each output "
            "or group of inputs"
        )
    return ""


def _scales_fit(leaf: Compressed) -> bool:
    if len(leaf.scales.shape) != leaf.ndim:
        return False
    axis = leaf.axis % leaf.ndim
    groups = leaf.shape[axis] // leaf.pattern.m
    return all(
        size > 0 and groups % size == 0 if i == axis else size in (1, full)
        for i, (size, full) in enumerate(
            zip(leaf.scales.shape, leaf.shape, strict=True)
        )
    )
