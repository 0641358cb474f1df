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
    Rectified,
    as_dense,
    form_order,
)
from jaxsparse._compressed.compress_both import compress_activation, compress_both
from jaxsparse._compressed.compressed_array import Compressed
from jaxsparse._patterns import NM, best_transposable_mask, unpack_mask


#: The pattern of activations: rows and columns of blocks lie along both of their axes.
BOTH = NM(2, 4, transposable=True)

#: The axes of an activation as a matrix, along which groups of its forms lie.
AXES = (-2, -1)


def activation_mask(x: Float[Array, "*rows k"]) -> Bool[Array, "*rows k"]:
    """Returns the best transposable 2:4 mask of an activation, a constant.

    Blocks are of 4 rows, counted over all leading axes, by 4 columns.
    """
    matrix = lax.stop_gradient(_as_matrix(x))
    mask = best_transposable_mask(jnp.abs(matrix), BOTH.n, BOTH.m, (0, 1))
    return mask.reshape(x.shape)


def masked_activation(x: Float[Array, "*rows k"]) -> Float[Array, "*rows k"]:
    """Returns an activation without what its mask drops, which has no gradient."""
    return _masked(x, activation_mask(x))


def activation(
    x: Array | Rectified, name: str, axes: Sequence[int]
) -> Accelerated | Array:
    """Returns `masked_activation(x)` with its compressed forms.

    Args:
      x: the activation, `[*rows, k]`.
      name: what to call it.
      axes: some of `AXES`, along which groups of the forms lie.
    """
    dense = as_dense(x)
    if not axes:
        return masked_activation(dense)
    of_squared_relu = isinstance(x, Rectified)
    best = compress_activation(
        _as_matrix(x.before if of_squared_relu else x),
        axes,
        of_squared_relu=of_squared_relu,
        kept=-1 not in axes,  # otherwise a form is used in its stead
    )
    mask = unpack_mask(best.mask, _as_matrix(dense).shape).reshape(dense.shape)
    masked = _masked(dense, mask)
    if best.kept is not None:
        masked = _computed(masked, best.kept.reshape(dense.shape))
    return _with_forms(masked, name, best.forms, axes)


@jax.custom_jvp
def _computed(x: Array, value: Array) -> Array:
    """Returns `value`, which is `x` but was computed otherwise."""
    del x
    return value


@_computed.defjvp
def _computed_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    return _computed(*primals), tangents[0]


def gradient_with_forms(
    g: Float[Array, "*rows k"], name: str, axes: Sequence[int]
) -> Accelerated | Array:
    """Returns a gradient that has the zeros of a mask, with its compressed forms.

    Args:
      g: the gradient.
      name: what to call it.
      axes: as in `activation`.
    """
    if not axes:
        return g
    forms = compress_both(_as_matrix(g), None, BOTH, g.dtype, axes)
    return _with_forms(g, name, forms, axes)


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
