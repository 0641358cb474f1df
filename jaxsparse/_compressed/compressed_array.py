"""A weight without its zeros: what it kept, group by group, and where that was.

The value in slot `j` of group `g` is `values[..., g * n + j, ...]`; what slots are, and
the layout of `indices` to the bit, see `indices`. For the usual `[k, out]`, threads
that work on neighbouring outputs read neighbouring values and indices, and a tile of
groups is one block of rows of either array.
"""

from dataclasses import dataclass, field
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxsparse._compressed.indices import code_shape, decode
from jaxsparse._patterns import NM, group_positions, merge_groups
from jaxsparse._sharding import gather_groups, reshard_to


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Compressed:
    """An n:m sparse weight without its zeros: a pytree of two arrays.

    A weight `[..., k, ...]` takes `k * n / m` values and, for 2:4, 4:8 and 8:16, one
    bit a weight beside them: 9/16 of the bytes of a bfloat16 weight, 10/16 of int8.

    `jax.vmap`, `lax.scan` and stacking add or take away *leading* axes of both arrays;
    the axis is counted from the end, so what they return is a compressed weight again.
    Integers have no gradients: differentiate with respect to `values`, with
    `dataclasses.replace(compressed, values=values)` inside the function.

    Attributes:
      values: the kept weights, like the weight with the group axis shortened to
        `k * n / m`. In each group they are in the weight's own order.
      indices: uint8, where the values were, packed along the group axis. For each group
        in turn, lowest bit first, 1:4 and 2:4 have the place of each value in two
        bits, 1:8, 2:8 and up to 4:16 in four bits, and all others one bit for each of
        the `m` places, set where there is a value.
      pattern: n:m, with an `m` of 4, 8 or 16.
      axis: the group axis, counted from the end: negative.

    >>> from jaxsparse import compress
    >>> compressed = compress(jnp.array([0.0, 5.0, 0.0, 7.0]), "2:4")
    >>> compressed.values, [f"{byte:08b}" for byte in compressed.indices]
    (Array([5., 7.], dtype=float32), ['00001101'])
    """

    values: Any  # an array; in a mapped tree whatever the mapped function returns
    indices: Any
    pattern: NM = field(metadata={"static": True})
    axis: int = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        shape = list(self.values.shape)
        shape[self.axis] = shape[self.axis] // self.pattern.n * self.pattern.m
        return tuple(shape)

    @property
    def ndim(self) -> int:
        """How many axes the weight has."""
        return self.values.ndim

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the weight."""
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        """The size of values and indices in bytes."""
        return self.values.nbytes + self.indices.nbytes


@jax.jit
def decompress(compressed: Compressed) -> Array:
    """The weight with its zeros: to the bit what masking it would have made of it.

    Differentiable in the values.

    Args:
      compressed: a compressed weight.

    Returns:
      An array of its shape and dtype; places without a value hold plus zero.

    >>> from jaxsparse import compress
    >>> w = jnp.array([-0.0, 5.0, 1.0, 7.0])
    >>> decompress(compress(w, "2:4"))
    Array([0., 5., 0., 7.], dtype=float32)
    """
    pattern, axis = compressed.pattern, compressed.axis % compressed.ndim
    values = gather_groups(compressed.values, pattern.n, axis)
    kept = group_positions(values, pattern.n, axis)
    found = decode(compressed.indices, pattern, kept[0].shape[axis], axis)
    slots = jnp.stack([reshard_to(slot, kept[0]) for slot in found], axis + 1)
    weights = jnp.zeros((), values.dtype)
    for j, value in enumerate(kept):
        weights = jnp.where(slots == j, jnp.expand_dims(value, axis + 1), weights)
    return merge_groups(weights, axis)


def is_compressed(leaf: Any) -> TypeGuard[Compressed]:
    """Whether a node of a tree is a compressed weight."""
    return isinstance(leaf, Compressed)


def compressed_shapes(
    shape: tuple[int, ...], pattern: NM, axis: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of the values and the indices of a weight of `shape`."""
    axis %= len(shape)
    size = shape[axis] // pattern.m * pattern.n
    values = (*shape[:axis], size, *shape[axis + 1 :])
    return values, code_shape(shape, pattern, axis)


def stand_in(leaf: Compressed) -> jax.ShapeDtypeStruct:
    """The shape and dtype of a compressed weight."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def as_dense_shapes(params: PyTree) -> PyTree:
    """The tree with a `jax.ShapeDtypeStruct` for every compressed leaf.

    It has the paths and shapes of the tree that was compressed.
    """
    return jax.tree.map(
        lambda leaf: stand_in(leaf) if is_compressed(leaf) else leaf,
        params,
        is_leaf=is_compressed,
    )
