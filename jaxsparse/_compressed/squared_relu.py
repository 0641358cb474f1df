"""Squared ReLUs under a mask, of which the backward pass keeps a compressed form alone.

`relu(h)**2` has the gradient `2 * relu(h)`, and in bfloat16 the square root of a
rounded square is the number again: rounding moves the square by at most half a unit,
and so the root by less than half of its own. Below 2**-63 squares are subnormal, and
such gradients may become zero; in float16 that would begin at 2**-7. The product that
follows keeps a form of the squares anyway, for the gradient of its weight.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxsparse._compressed.compressed_array import Compressed
from jaxsparse._sharding import gather_groups


def roots_are_exact(dtype: DTypeLike) -> bool:
    """Returns whether the square root of each rounded square is the number again."""
    return dtype == jnp.bfloat16


@jax.custom_vjp
def squared_relu(
    h: Float[Array, "rows k"], square: Float[Array, "rows k"], form: Compressed
) -> Float[Array, "rows k"]:
    """Returns `square` as a function of `h`, whose gradient needs only `form`.

    Differentiable in reverse mode, any number of times.

    Args:
      h: what it is the square of the ReLU of.
      square: the square, with zeros where it is masked.
      form: the same compressed to 2:4, with groups along the rows; from `form_of`.
    """
    del h, form
    return square


def _save(h: Array, square: Array, form: Compressed) -> tuple[Array, Compressed]:
    # By the function itself, so that an outer derivative sees its rule; so below.
    return squared_relu(h, square, form), form


def _backward(form: Compressed, g: Array) -> tuple[Array, None, None]:
    relu = _roots(form)
    by_group = gather_groups(g, 8, 0).reshape(relu.shape)
    # Not the product alone: a gradient may be infinite where nothing is kept.
    return jnp.where(relu > 0, by_group * (2 * relu), 0).reshape(g.shape), None, None


squared_relu.defvjp(_save, _backward)


@jax.custom_vjp
def form_of(h: Float[Array, "rows k"], form: Compressed) -> Compressed:
    """Returns `form` as a function of `h`, for derivatives of the gradient.

    Its own gradient is taken for that of the square roots of its values.
    """
    del h
    return form


def _save_form(h: Any, form: Any) -> tuple[Compressed, Compressed]:
    h, form = jax.tree.map(lambda primal: primal.value, (h, form))
    form = form_of(h, form)
    return form, form


def _scatter(form: Compressed, g: Compressed) -> tuple[Array | None, None]:
    if isinstance(g.values, SymbolicZero):  # of a first derivative
        return None, None
    by_relu, kept = _expand(g.values, form.indices), _roots(form) > 0
    return jnp.where(kept, by_relu, 0).reshape(form.shape), None


form_of.defvjp(_save_form, _scatter, symbolic_zeros=True)


@jax.custom_vjp
def _roots(form: Compressed) -> Float[Array, "bytes 2 4 k"]:
    """Returns the square roots where they are, with a gradient for `form_of`."""
    squares = _expand(form.values, form.indices).astype(jnp.float32)
    # XLA may leave out a rounding that is only a cast.
    return lax.reduce_precision(jnp.sqrt(squares), 8, 7).astype(form.dtype)


def _save_roots(form: Compressed) -> tuple[Array, Compressed]:
    return _roots(form), form


def _gather(form: Compressed, g: Array) -> tuple[Compressed]:
    expand = lambda values: _expand(values, form.indices)
    (values,) = jax.linear_transpose(expand, form.values)(g)
    return (replace(form, values=values, indices=None),)


_roots.defvjp(_save_roots, _gather)


@jax.jit
def _expand(values: Array, indices: Array) -> Float[Array, "bytes 2 4 k"]:
    """Returns values where they are, and zeros, by bytes of indices and their groups.

    Elementwise and in this shape, so that XLA makes one pass of it and what it is for.
    """
    values = gather_groups(values, 4, 0)
    by_slot = values.reshape(len(indices), 2, 2, values.shape[-1])
    first, second = (
        ((indices[:, None, None] ^ _PLACES[slot]) & _FIELDS[slot]) == 0
        for slot in range(2)
    )
    rest = jnp.where(second, by_slot[:, :, 1:], 0)
    return jnp.where(first, by_slot[:, :, :1], rest)


#: For each slot, group of a byte and place in it: the two bits where the place of the
#: slot is, and what they are for this place.
_SHIFTS = (2 * np.arange(2)[:, None] + 4 * np.arange(2))[:, :, None, None]
_FIELDS = np.repeat(3 << _SHIFTS, 4, 2).astype(np.uint8)
_PLACES = (np.arange(4)[:, None] << _SHIFTS).astype(np.uint8)
