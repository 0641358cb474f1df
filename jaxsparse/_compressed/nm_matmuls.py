"""Products of one input with several compressed weights, in one launch if possible."""

from collections.abc import Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxsparse._compressed import cuda_matmul, kernel_support
from jaxsparse._compressed.compressed_array import Compressed
from jaxsparse._compressed.cuda_matmul_bytes import LIBRARY, cuda_matmuls_bytes
from jaxsparse._compressed.nm_matmul import (
    Implementation,
    as_jax,
    check_quantizes_rows,
    matmul_gradients,
    nm_matmul,
)


def nm_matmuls(
    x: Array,
    weights: Sequence[Compressed],
    *,
    implementation: Implementation | None = None,
    quantize_activations: bool = False,
) -> list[Array]:
    """Returns `nm_matmul` of one input by each of several weights.

    A kernel computes them in one launch, if they are stored alike. Every launch costs
    the time in which memory is idle, of which few rows need little more; with many, a
    small weight alone would leave multiprocessors idle. Activations are quantized once.

    Args:
      x: `[..., k]`.
      weights: of shapes `[k, out]`.
      implementation: as in `nm_matmul`.
      quantize_activations: as in `nm_matmul`.

    Returns:
      `[..., out]` for each weight.
    """
    if quantize_activations:
        for weight in weights:
            check_quantizes_rows(weight)
    joint = len(weights) > 1 and implementation != "xla"
    if not (joint and _have_kernel(x, weights, quantize_activations)):
        alone = partial(
            nm_matmul,
            implementation=implementation,
            quantize_activations=quantize_activations,
        )
        return [alone(x, weight) for weight in weights]
    most = cuda_matmul.MAX_WEIGHTS
    exported = implementation == "cuda"
    x, weights = as_jax((x, [*weights]))
    parts = [list(weights[i : i + most]) for i in range(0, len(weights), most)]
    products: list[Array] = []
    for part in parts:
        products.extend(_matmuls(exported, quantize_activations, x, part))
    return products


def _have_kernel(
    x: Array, weights: Sequence[Compressed], quantize_activations: bool
) -> bool:
    """Returns whether one kernel can multiply by all weights."""
    stored = {
        (w.values.dtype, w.is_quantized, w.pattern.n, w.pattern.m) for w in weights
    }
    if len(stored) > 1 or any(weight.dtype != x.dtype for weight in weights):
        return False
    library = LIBRARY if quantize_activations else ""
    reasons = (kernel_support.unsupported_reason(x, w, library) for w in weights)
    return not any(reasons)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _matmuls(
    exported: bool, quantize_activations: bool, x: Array, weights: list[Compressed]
) -> list[Array]:
    multiply = cuda_matmuls_bytes if quantize_activations else cuda_matmul.cuda_matmuls
    return multiply(x, weights, exported=exported)


def _forward(
    exported: bool, quantize_activations: bool, x: Array, weights: list[Compressed]
) -> tuple[list[Array], tuple[Array, list[Compressed]]]:
    return _matmuls(exported, quantize_activations, x, weights), (x, weights)


def _backward(
    _exported: bool,
    _quantize_activations: bool,
    residuals: tuple[Array, list[Compressed]],
    gradients: list[Array],
) -> tuple[Array, list[Compressed]]:
    x, weights = residuals
    pairs = zip(weights, gradients, strict=True)
    each = [matmul_gradients(x, weight, gradient) for weight, gradient in pairs]
    by_x = reduce(jnp.add, [gradient for gradient, _ in each])
    return by_x, [gradient for _, gradient in each]


_matmuls.defvjp(_forward, _backward)
