"""A weight stored without its zeros: the kept values and their positions in groups.

The value in slot `j` of group `g` is `values[..., g * n + j, ...]`. The module
`indices` defines slots and the layout of `indices` to the bit. For the usual
`[k, out]`, threads that work on neighbouring outputs read neighbouring values and
indices, and a tile of groups is one block of rows of either array.
"""

import json
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeGuard

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array

from jaxsparse._compressed.indices import code_shape, decode
from jaxsparse._patterns import NM, group_positions, merge_groups, split_groups
from jaxsparse._sharding import gather_groups, reshard_to
from jaxsparse._trees import PyTree, StandIn


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Compressed(StandIn):
    """An n:m sparse weight without its zeros: a pytree of two arrays, or three.

    A weight `[..., k, ...]` takes `k * n / m` values and, for 2:4, 4:8 and 8:16, one
    more bit per weight: 9/16 of the bytes of a bfloat16 weight, 10/16 of int8. A
    quantized weight, from `quantize_compressed`, has values of 8 bits and float32
    scales: the weights are values times scales.

    `jax.vmap`, `lax.scan` and stacking add or remove *leading* axes of all arrays. The
    axis is counted from the end, so their results are compressed weights again. The
    integer indices have no gradients: differentiate with respect to `values`, with
    `dataclasses.replace(compressed, values=values)` inside the function.

    Attributes:
      values: the kept weights; of the weight's shape, but with the group axis shortened
        to `k * n / m`. Within each group they keep the order of the weight.
      indices: uint8, the positions of the values in their groups, packed along the
        group axis. One group follows the other, lowest bit first. 1:4 and 2:4 have the
        position of each value in two bits; 1:8, 2:8 and 1:16 to 4:16 in four bits; all
        other patterns have one bit for each of the `m` positions, set if it has a
        value.
      pattern: n:m, with an `m` of 4, 8 or 16.
      axis: the group axis, counted from the end: negative.
      scales: None, or the float32 scales of a quantized weight, with the axes of
        `values`. The group axis is shortened to one scale for each group of inputs, or
        to one; the other axes that a matmul sums over may also be shortened to one. To
        map over such a leading axis, first repeat the scales along it:
        `replace(w, scales=jnp.broadcast_to(w.scales, (len(w.values), 1, out)))`.
      quantized_from: the dtype of the weight before it was quantized, or None.

    >>> from jaxsparse import compress
    >>> compressed = compress(jnp.array([0.0, 5.0, 0.0, 7.0]), "2:4")
    >>> compressed.values, [f"{byte:08b}" for byte in compressed.indices]
    (Array([5., 7.], dtype=float32), ['00001101'])
    """

    values: Any  # an array; in a mapped tree whatever the mapped function returns
    indices: Any
    pattern: NM = field(metadata={"static": True})
    axis: int = field(metadata={"static": True})
    scales: Any = None
    quantized_from: jnp.dtype | None = field(default=None, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        shape = list(self.values.shape)
        shape[self.axis] = shape[self.axis] // self.pattern.n * self.pattern.m
        return tuple(shape)

    @property
    def ndim(self) -> int:
        """The number of axes of the weight."""
        return self.values.ndim

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the weight, which `decompress` returns."""
        dtype = self.quantized_from
        return self.values.dtype if dtype is None else dtype

    @property
    def is_quantized(self) -> bool:
        """Whether the weights are values times scales."""
        return self.quantized_from is not None

    @property
    def nbytes(self) -> int:
        """The total size of the arrays in bytes."""
        scales = self.scales.nbytes if self.is_quantized else 0
        return self.values.nbytes + self.indices.nbytes + scales

    #: How functions of trees of arrays refuse it.
    refusal: ClassVar[str] = "is compressed: give decompress_params(params)"

    def __array__(self, *_: Any, **__: Any) -> Any:
        """Raises `TypeError`: neither NumPy nor JAX converts it unasked."""
        raise TypeError(
            f"a Compressed weight of shape {self.shape} is no array: give "
            "decompress(w), or run the whole model with sparse_apply(fn)"
        )

    #: NumPy then leaves `x @ compressed` to this class.
    __array_ufunc__: ClassVar[None] = None

    def __matmul__(self, _: Any) -> Any:
        """Raises `TypeError`: operators are for arrays."""
        raise TypeError(
            f"a Compressed weight of shape {self.shape} is no operand of @: call "
            "nm_matmul(x, w), or run a whole model with sparse_apply(fn)"
        )

    __rmatmul__ = __matmul__


_Static = tuple[NM, int, jnp.dtype | None]


def _static_as_bytes(static: _Static) -> bytes:
    pattern, axis, dtype = static
    name = None if dtype is None else dtype.name
    return json.dumps([pattern.n, pattern.m, pattern.transposable, axis, name]).encode()


def _static_from_bytes(data: bytes | bytearray) -> _Static:
    n, m, transposable, axis, name = json.loads(data)
    dtype = None if name is None else jnp.dtype(name)
    return NM(n, m, transposable=transposable), axis, dtype


# A program that `jax.export` serializes may take and return compressed weights.
export.register_pytree_node_serialization(
    Compressed,
    serialized_name="jaxsparse.Compressed",
    serialize_auxdata=_static_as_bytes,
    deserialize_auxdata=_static_from_bytes,
)


@jax.jit
def decompress(compressed: Compressed) -> Array:
    """Returns the weight with its zeros, bit for bit as `mask_params` returns it.

    Weights that are quantized are values times scales in float32, rounded once to the
    dtype of the weight. Differentiable in values and scales of floats.

    Args:
      compressed: a compressed weight.

    Returns:
      An array of its shape and dtype. Pruned weights are plus zero.

    Raises:
      TypeError: it is not a compressed weight.

    >>> from jaxsparse import compress
    >>> w = jnp.array([-0.0, 5.0, 1.0, 7.0])
    >>> decompress(compress(w, "2:4"))
    Array([0., 5., 0., 7.], dtype=float32)
    """
    if not is_compressed(compressed):
        shape = getattr(compressed, "shape", None)
        got = "a tree" if shape is None else f"an array of shape {shape}"
        raise TypeError(
            f"decompress takes a Compressed weight, got {got}: trees with any leaves "
            "are for decompress_params(params)"
        )
    pattern, axis = compressed.pattern, compressed.axis % compressed.ndim
    values = gather_groups(dequantize(compressed).values, pattern.n, axis)
    by_slot = group_positions(values, pattern.n, axis)
    slots = decode(compressed.indices, pattern, by_slot[0].shape[axis], axis)
    slots = jnp.stack([reshard_to(slot, by_slot[0]) for slot in slots], axis + 1)
    weights = jnp.zeros((), values.dtype)
    for j, value in enumerate(by_slot):
        weights = jnp.where(slots == j, jnp.expand_dims(value, axis + 1), weights)
    return merge_groups(weights, axis)


def dequantize(compressed: Compressed) -> Compressed:
    """Returns the compressed weight with values in the dtype of the weight."""
    if not compressed.is_quantized:
        return compressed
    values, scales = compressed.values, compressed.scales
    dtype = jnp.promote_types(scales.dtype, compressed.dtype)
    axis = compressed.axis % compressed.ndim
    size = values.shape[axis] // scales.shape[axis]  # values for each scale
    values = split_groups(gather_groups(values, size, axis), size, axis)
    values = values.astype(dtype) * jnp.expand_dims(scales.astype(dtype), axis + 1)
    values = merge_groups(values.astype(compressed.dtype), axis)
    return replace(compressed, values=values, scales=None, quantized_from=None)


def is_compressed(leaf: Any) -> TypeGuard[Compressed]:
    """Returns whether a node of a tree is a compressed weight."""
    return isinstance(leaf, Compressed)


def compressed_shapes(
    shape: tuple[int, ...], pattern: NM, axis: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the shapes of the values and of the indices of a weight of `shape`."""
    axis %= len(shape)
    size = shape[axis] // pattern.m * pattern.n
    values = (*shape[:axis], size, *shape[axis + 1 :])
    return values, code_shape(shape, pattern, axis)


def as_dense_shapes(params: PyTree) -> PyTree:
    """Returns the tree with a `jax.ShapeDtypeStruct` for every compressed leaf.

    It has the paths, shapes and dtypes of the tree that was compressed.
    """

    def dense_shape(leaf: Any) -> Any:
        if not is_compressed(leaf):
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

    return jax.tree.map(dense_shape, params, is_leaf=is_compressed)
