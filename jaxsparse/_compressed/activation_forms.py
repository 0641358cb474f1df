"""Activations that are mostly zero, with compressed forms, for training.

A transposable mask serves both products with `relu(h)**2`: the next layer's, and the
gradient of that layer's weight. The gradient of `h` has the zeros of the same mask.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxsparse._compressed import accelerated_weight as moves
from jaxsparse._compressed.accelerated_weight import (
    Accelerated,
    Form,
    as_dense,
    form_order,
)
from jaxsparse._compressed.compress_both import compress_both, compress_squared_relu
from jaxsparse._compressed.compressed_array import Compressed
from jaxsparse._compressed.rectified import Rectified
from jaxsparse._compressed.squared_relu import form_of, roots_are_exact, squared_relu
from jaxsparse._patterns import NM, best_transposable_mask, unpack_mask


#: The pattern of activations: rows and columns of blocks lie along both of their axes.
BOTH = NM(2, 4, transposable=True)

#: The axes of an activation as a matrix, along which groups of its forms lie.
AXES = (-2, -1)

#: What errors call them.
SQUARE, GRADIENT = "the square of a ReLU", "the gradient of an activation"


@jax.jit
def squared_relu_mask(h: Float[Array, "*rows k"]) -> Bool[Array, "*rows k"]:
    """Returns the best transposable 2:4 mask of `relu(h)`, a constant.

    Blocks are of 4 rows, counted over all leading axes, by 4 columns.
    """
    matrix = jax.nn.relu(_as_matrix(h))
    mask = best_transposable_mask(matrix, BOTH.n, BOTH.m, (0, 1))
    return mask.reshape(h.shape)


def masked_square(x: Rectified) -> Array:
    """Returns `relu(h)**2` without what its mask drops, which has no gradient."""
    return _masked(x.dense, squared_relu_mask(lax.stop_gradient(x.before)))


def with_stand_ins(x: Array | Rectified, name: str) -> Accelerated | Array:
    """Returns an activation with forms along both axes whose values mean nothing.

    Enough to see which of them products use.

    Args:
      x: the activation.
      name: `SQUARE` or `GRADIENT`.
    """
    dense = as_dense(x)
    *_, p, q = _as_matrix(dense).shape
    forms = [
        Compressed(
            jnp.zeros((k // 2, out), dense.dtype),
            jnp.zeros((k // 8, out), jnp.uint8),
            NM(BOTH.n, BOTH.m),
            -2,
        )
        for k, out in ((p, q), (q, p))
    ]
    return _with_forms(dense, name, forms, AXES)


def compressed_square(x: Rectified, axes: Sequence[int]) -> Accelerated | Array:
    """Returns `masked_square(x)` with its compressed forms.

    Args:
      x: `relu(h)**2`.
      axes: some of `AXES`, along which groups of the forms lie.
    """
    if not axes:
        return masked_square(x)
    # Without the form that its product uses, the product needs the dense square.
    matrix, kept = _as_matrix(x.before), -1 not in axes
    best = compress_squared_relu(matrix, axes, kept=kept)
    mask = unpack_mask(best.mask, matrix.shape)
    square, forms = _masked(_as_matrix(x.dense), mask), [*best.forms]
    if roots_are_exact(matrix.dtype) and -2 in axes:
        by_rows = axes.index(-2)
        forms[by_rows] = form_of(matrix, forms[by_rows])
        value = square if best.kept is None else best.kept
        square = squared_relu(matrix, value, forms[by_rows])
    elif best.kept is not None:
        square = _computed(square, best.kept)
    square = square.reshape(x.dense.shape)
    return _with_forms(square, SQUARE, forms, axes)


@jax.custom_jvp
def _computed(x: Array, value: Array) -> Array:
    """Returns `value`, which is `x` but was computed otherwise."""
    del x
    return value


@_computed.defjvp
def _computed_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    return _computed(*primals), tangents[0]


def gradient_with_forms(
    g: Float[Array, "*rows k"], axes: Sequence[int]
) -> Accelerated | Array:
    """Returns a gradient that has the zeros of a mask, with its compressed forms.

    Args:
      g: the gradient.
      axes: as in `compressed_square`.
    """
    if not axes:
        return g
    forms = compress_both(_as_matrix(g), None, BOTH, g.dtype, axes)
    return _with_forms(g, GRADIENT, forms, axes)


def _as_matrix(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _masked(x: Array, mask: Array) -> Array:
    return jnp.where(mask, x, jnp.zeros((), x.dtype))


def _with_forms(
    x: Array, name: str, matrices: Sequence[Compressed], axes: Sequence[int]
) -> Accelerated | Array:
    order = {-2: (), -1: form_order((1, 0))}
    forms = tuple(
        Form(matrix, order[axis], axis)
        for matrix, axis in zip(matrices, axes, strict=True)
    )
    matrix = Accelerated(_as_matrix(x), forms, name, activation=True)
    return moves.map_forms(matrix, x, partial(moves.reshape_form, shape=x.shape))
