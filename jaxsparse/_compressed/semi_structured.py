"""PyTorch's 2:4 format: the metadata of CUTLASS's sparse matrix products.

There a weight has a row for each output, with groups of four along the columns. For
each group, two bits hold the position of the first kept weight and the next two that of
the second, which is also the code of 2:4 in `Compressed`. Codes are packed from the
lowest bits on: four in an int16 for weights of two bytes, eight in an int32 for weights
of one byte.

These words, of shape `[rows, columns]`, are stored in the order in which the threads of
a warp load them. A block has 32 rows of int16, or 16 of int32, in runs of 8. Within a
block the rows are reordered: first the first row of each run, then the second of each,
and so on. Then in every square of two such rows and two columns the two off-diagonal
words are swapped. Pairs of columns are stored one after the other, each row by row. All
of this is a permutation of the bits of the address, so one transpose performs it.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Int, Shaped

from jaxsparse._compressed.check_codes import code_fault
from jaxsparse._compressed.compressed_array import Compressed
from jaxsparse._patterns import NM
from jaxsparse._trees import require_kind


def to_semi_structured(
    compressed: Compressed,
) -> tuple[Shaped[Array, "out kept"], Int[Array, "out words"]]:
    """Returns a compressed matrix in PyTorch's semi-structured format (CUTLASS).

    The results are the `packed` and `meta` of a
    `torch.sparse.SparseSemiStructuredTensorCUTLASS`, for the weight in PyTorch's
    layout, `(out, k)`.

    Args:
      compressed: a 2:4 matrix of bfloat16, float16 or int8, of shape `[k, out]` with
        groups along axis 0, or `[out, k]` with groups along axis 1. Of a weight that is
        quantized to int8 the result has the values; its scales are `compressed.scales`.

    Returns:
      The values, `[out, k / 2]`, and the metadata, which are int16 `[out, k / 16]`, or
      int32 `[out, k / 32]` for int8.

    Raises:
      ValueError: another rank, pattern or dtype; or `out` is not divisible by 32 (int8:
        16), or `k` by 32 (int8: 64).
      TypeError: it is not a compressed weight.

    >>> from jaxsparse import compress
    >>> w = compress(jnp.ones((32, 32), jnp.bfloat16), "2:4")
    >>> values, meta = to_semi_structured(w)
    >>> values.shape, meta.shape, f"{meta[0, 0]:#x}"
    ((32, 16), (32, 2), '0x4444')
    """
    remedy = "give compress(w, '2:4', axis=0)"
    require_kind("to_semi_structured", compressed, (Compressed,), remedy)
    values, codes = compressed.values, compressed.indices
    _check_layout(compressed.shape, values.dtype, compressed.pattern, compressed.axis)
    if compressed.axis == -2:
        values, codes = values.T, codes.T
    word = _metadata_dtype(values.dtype)
    words = lax.bitcast_convert_type(
        codes.reshape(codes.shape[0], -1, word.itemsize), word
    )
    blocks = words.reshape(-1, _block_rows(word) // 16, 2, 8, words.shape[1] // 2, 2)
    return values, blocks.transpose(4, 0, 3, 1, 5, 2).reshape(words.shape)


def from_semi_structured(
    values: jax.typing.ArrayLike, meta: jax.typing.ArrayLike, *, axis: int = 0
) -> Compressed:
    """Returns a compressed matrix from PyTorch's semi-structured format (CUTLASS).

    Args:
      values: PyTorch's `packed`, `[out, k / 2]`: bfloat16, float16 or int8.
      meta: PyTorch's `meta`: int16 `[out, k / 16]`, or int32 `[out, k / 32]` for int8.
      axis: the group axis of the result: 0 for Flax's `[k, out]`, 1 for PyTorch's
        `[out, k]`.

    Returns:
      The compressed matrix.

    Raises:
      ValueError: the shapes or dtypes of values and metadata do not match, or are none
        that `to_semi_structured` returns; another axis; or the metadata have codes that
        are not two positions in ascending order. Traced metadata are not checked.

    >>> from jaxsparse import compress, decompress
    >>> w = compress(jnp.ones((32, 32), jnp.bfloat16), "2:4")
    >>> back = from_semi_structured(*to_semi_structured(w))
    >>> print((decompress(back) == decompress(w)).all())
    True
    """
    values, meta = jnp.asarray(values), jnp.asarray(meta)
    if axis not in (0, 1):
        raise ValueError(f"the group axis of a matrix must be axis 0 or 1, got {axis}")
    if values.ndim != 2:
        raise ValueError(
            f"values must be a matrix [out, k / 2], got shape {values.shape}"
        )
    out, kept = values.shape
    _check_layout((out, 2 * kept), values.dtype, NM(2, 4), -1)
    word = _metadata_dtype(values.dtype)
    shape = out, kept // (4 * word.itemsize)
    if (meta.shape, meta.dtype) != (shape, word):
        raise ValueError(
            f"the metadata of values of shape {values.shape} and dtype {values.dtype} "
            f"must have shape {shape} and dtype {word}, got {meta.shape} and "
            f"{meta.dtype}"
        )
    blocks = meta.reshape(shape[1] // 2, -1, 8, _block_rows(word) // 16, 2, 2)
    words = blocks.transpose(1, 3, 5, 2, 0, 4).reshape(shape)
    codes = lax.bitcast_convert_type(words, jnp.uint8).reshape(out, -1)
    if axis == 0:
        values, codes = values.T, codes.T
    compressed = Compressed(values, codes, NM(2, 4), axis - 2)
    if not isinstance(codes, Tracer) and (fault := code_fault(compressed)):
        raise ValueError(
            f"the metadata of values of shape {values.shape} are not those of a 2:4 "
            f"matrix: {fault}: give `packed` and `meta` of the same tensor"
        )
    return compressed


def _metadata_dtype(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.dtype("int32" if dtype == jnp.int8 else "int16")


def _block_rows(word: jnp.dtype) -> int:
    """Returns the number of rows of a block of metadata."""
    return 64 // word.itemsize


def _check_layout(
    shape: tuple[int, ...], dtype: jnp.dtype, pattern: NM, axis: int
) -> None:
    if len(shape) != 2 or (pattern.n, pattern.m) != (2, 4):
        raise ValueError(
            "PyTorch's semi-structured format is for 2:4 matrices, got "
            f"{pattern} of shape {shape}"
        )
    if dtype not in (jnp.bfloat16, jnp.float16, jnp.int8):
        raise ValueError(
            f"CUTLASS's 2:4 metadata is for bfloat16, float16 and int8, got {dtype}"
        )
    k, out = shape[axis], shape[-3 - axis]
    word = _metadata_dtype(dtype)
    rows, columns = _block_rows(word), 16 * word.itemsize
    if out % rows or k % columns:
        raise ValueError(
            f"{dtype} requires a number of outputs divisible by {rows} and of inputs "
            f"divisible by {columns}, got {out} outputs and {k} inputs: pad the weight "
            "with zeros"
        )
