"""PyTorch's 2:4 format: the metadata of CUTLASS's sparse matrix products.

A weight has rows of outputs there, with groups of four along the columns. Of each group
two bits tell the place of the first kept weight and the next two that of the second,
which is the code of 2:4 here too. Codes follow each other from the lowest bits on, four
in an int16 beside weights of two bytes, eight in an int32 beside weights of one.

These words, of shape `[rows, columns]`, lie in memory as a warp's threads load them. A
block has 32 rows of int16, or 16 of int32, in runs of 8. Rows are first put in another
order, in which the first rows of all runs come first, then the second ones. Then in
every square of two such rows and two columns the corners off the diagonal change
places. Pairs of columns are stored one after the other, each row by row. All of this
only moves bits of the address about, so one transposition does it.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, Shaped

from jaxsparse._compressed.compressed_array import Compressed
from jaxsparse._patterns import NM


def to_semi_structured(
    compressed: Compressed,
) -> tuple[Shaped[Array, "out kept"], Int[Array, "out words"]]:
    """A compressed matrix in PyTorch's semi-structured format, that of CUTLASS.

    The two are what `torch.sparse.SparseSemiStructuredTensorCUTLASS` holds as `packed`
    and `meta`, for the weight as PyTorch has it, of shape `(out, k)`.

    Args:
      compressed: a matrix of 2:4 in bfloat16, float16 or int8, of shape `[k, out]` with
        groups along axis 0, or `[out, k]` with groups along axis 1.

    Returns:
      The values, `[out, k / 2]`, and the metadata: int16 `[out, k / 16]`, or int32
      `[out, k / 32]` for int8.

    Raises:
      ValueError: another rank, pattern or dtype; an `out` that 32 (int8: 16) or a `k`
        that 32 (int8: 64) does not divide.

    >>> from jaxsparse import compress
    >>> w = compress(jnp.ones((32, 32), jnp.bfloat16), "2:4")
    >>> values, meta = to_semi_structured(w)
    >>> values.shape, meta.shape, f"{meta[0, 0]:#x}"
    ((32, 16), (32, 2), '0x4444')
    """
    _check_layout(
        compressed.shape, compressed.dtype, compressed.pattern, compressed.axis
    )
    values, codes = compressed.values, compressed.indices
    if compressed.axis == -2:
        values, codes = values.T, codes.T
    word = _word(values.dtype)
    words = lax.bitcast_convert_type(
        codes.reshape(codes.shape[0], -1, word.itemsize), word
    )
    blocks = words.reshape(-1, _rows(word) // 16, 2, 8, words.shape[1] // 2, 2)
    moved = blocks.transpose(4, 0, 3, 1, 5, 2)
    return values, moved.reshape(words.shape)


def from_semi_structured(
    values: jax.typing.ArrayLike, meta: jax.typing.ArrayLike, *, axis: int = 0
) -> Compressed:
    """A compressed matrix from PyTorch's semi-structured format, that of CUTLASS.

    Args:
      values: `packed` of PyTorch, `[out, k / 2]`: bfloat16, float16 or int8.
      meta: the metadata beside it: int16 `[out, k / 16]`, or int32 `[out, k / 32]`.
      axis: 0 for Flax's `[k, out]`, 1 for PyTorch's `[out, k]`: where groups lie.

    Returns:
      The compressed matrix.

    Raises:
      ValueError: shapes or dtypes that do not belong together, or that
        `to_semi_structured` could not have given; another axis.

    >>> from jaxsparse import compress, decompress
    >>> w = compress(jnp.ones((32, 32), jnp.bfloat16), "2:4")
    >>> back = from_semi_structured(*to_semi_structured(w))
    >>> print((decompress(back) == decompress(w)).all())
    True
    """
    values, meta = jnp.asarray(values), jnp.asarray(meta)
    if axis not in (0, 1):
        raise ValueError(f"groups of a matrix lie along axis 0 or 1, got {axis}")
    if values.ndim != 2:
        raise ValueError(f"values are a matrix [out, k / 2], got shape {values.shape}")
    out, kept = values.shape
    _check_layout((out, 2 * kept), values.dtype, NM(2, 4), -1)
    word = _word(values.dtype)
    wanted = out, kept // (4 * word.itemsize)
    if (meta.shape, meta.dtype) != (wanted, word):
        raise ValueError(
            f"values of shape {values.shape} and dtype {values.dtype} have metadata of "
            f"shape {wanted} and dtype {word}, got {meta.shape} and {meta.dtype}"
        )
    blocks = meta.reshape(wanted[1] // 2, -1, 8, _rows(word) // 16, 2, 2)
    words = blocks.transpose(1, 3, 5, 2, 0, 4).reshape(wanted)
    codes = lax.bitcast_convert_type(words, jnp.uint8).reshape(out, -1)
    if axis == 0:
        values, codes = values.T, codes.T
    return Compressed(values, codes, NM(2, 4), axis - 2)


def _word(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of the metadata."""
    return jnp.dtype("int32" if dtype == jnp.int8 else "int16")


def _rows(word: jnp.dtype) -> int:
    """How many rows of metadata there are to a block."""
    return 64 // word.itemsize


def _check_layout(
    shape: tuple[int, ...], dtype: jnp.dtype, pattern: NM, axis: int
) -> None:
    if len(shape) != 2 or (pattern.n, pattern.m) != (2, 4):
        raise ValueError(
            "PyTorch's semi-structured format is for matrices of 2:4, got "
            f"{pattern} of shape {shape}"
        )
    if dtype not in (jnp.bfloat16, jnp.float16, jnp.int8):
        raise ValueError(
            f"CUTLASS's metadata of 2:4 is for bfloat16, float16 and int8, got {dtype}"
        )
    k, out = shape[axis], shape[-3 - axis]
    word = _word(dtype)
    rows, columns = _rows(word), 16 * word.itemsize
    if out % rows or k % columns:
        raise ValueError(
            f"{dtype} needs outputs that divide by {rows} and inputs by {columns}, got "
            f"{out} outputs and {k} inputs: pad the weight with zeros"
        )
