"""A change of one weight as the product of two thin factors."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxsparse._patterns import wide_float
from jaxsparse._sharding import reshard_like


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["a", "b"],
    meta_fields=["batch", "inputs", "outputs"],
)
@dataclass(frozen=True)
class LowRank:
    """Two factors whose product has the shape of a weight.

    For a kernel `(in, out)` they are `a` of shape `(in, rank)` and `b` of shape `(rank,
    out)`, and `x @ (w + a @ b)` is `x @ w + (x @ a) @ b`. For a stack of kernels
    `(layer, in, out)` each layer has its own: `(layer, in, rank)` and `(layer, rank,
    out)`. A kernel with several input or output axes, as in attention, has all of them
    in its factors.

    Attributes:
      a: floats of shape `[*batch, *inputs, rank]`.
      b: floats of shape `[*batch, rank, *outputs]`.
      batch: the axes of the weight along which there are separate products.
      inputs: the axes that the weight's product sums over; of a convolution also its
        spatial axes.
      outputs: all other axes.
    """

    a: Any  # trees of it may hold shapes or shardings as well
    b: Any
    batch: tuple[int, ...] = ()
    inputs: tuple[int, ...] = (0,)
    outputs: tuple[int, ...] = (1,)

    @property
    def rank(self) -> int:
        """The number of columns of `a` and rows of `b`."""
        return self.a.shape[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        batch = len(self.batch)
        sizes = (*self.a.shape[:-1], *self.b.shape[batch + 1 :])
        axes = (*self.batch, *self.inputs, *self.outputs)
        by_axis = dict(zip(axes, sizes, strict=True))
        return tuple(by_axis[axis] for axis in range(len(axes)))

    @property
    def nbytes(self) -> int:
        """The bytes of both factors."""
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in (self.a, self.b))

    def product(self) -> Float[Array, "..."]:
        """Returns the product of the factors, of the weight's shape, in float32.

        float64 factors have a float64 product.
        """
        rank = len(self.shape)  # its number among the axes
        dtype = wide_float(self.a.dtype, self.b.dtype)
        return jnp.einsum(
            self.a.astype(dtype),
            [*self.batch, *self.inputs, rank],
            self.b.astype(dtype),
            [*self.batch, rank, *self.outputs],
            list(range(rank)),
        )


def add_product(leaf: Array, factors: LowRank, scale: ArrayLike = 1.0) -> Array:
    """Returns a leaf plus its factors' product, with the dtype of the leaf.

    The sum is made in float32, or float64 if one of the two is.
    """
    product = reshard_like(factors.product(), leaf)
    dtype = wide_float(leaf.dtype, product.dtype)
    change = jnp.asarray(scale, dtype) * product.astype(dtype)
    return (leaf.astype(dtype) + change).astype(leaf.dtype)


def is_low_rank(node: Any) -> bool:
    """Returns whether a node of a tree is a pair of factors."""
    return isinstance(node, LowRank)
