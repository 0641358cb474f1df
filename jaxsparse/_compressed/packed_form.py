"""A 2:4 weight as one array, so that one collective sends it to other devices."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, UInt16

from jaxsparse._compressed.compress_both import compress_both
from jaxsparse._compressed.compressed_array import Compressed, decompress
from jaxsparse._patterns import NM
from jaxsparse.kernels import cuda_target
from jaxsparse.kernels.export import kernel_on_gpu


#: For sixteen rows of the weight there are so many of values, and one of indices.
_VALUE_ROWS = 8

_KERNEL = "compress_both"

#: The most rows of a grid of blocks, which each have 64 rows of the weight.
_MAX_ROWS = 64 * (2**16 - 1)


def packs(weight: Compressed) -> bool:
    """Returns whether a weight `[k, out]` can be packed."""
    is_2_4 = (weight.pattern.n, weight.pattern.m) == (2, 4)
    return is_2_4 and weight.values.dtype.itemsize == 2 and weight.shape[0] % 16 == 0


@jax.jit
def pack_form(weight: Compressed) -> UInt16[Array, "groups 9 out"]:
    """Returns the bits of a 2:4 weight `[k, out]`, for each sixteen of `k`."""
    k, out = weight.shape
    groups = k // 16
    values = lax.bitcast_convert_type(weight.values, jnp.uint16)
    pairs = weight.indices.reshape(groups, 2, out).astype(jnp.uint16)
    indices = pairs[:, 0] | pairs[:, 1] << 8
    values = values.reshape(groups, _VALUE_ROWS, out)
    return jnp.concatenate([values, indices[:, None]], 1)


def unpack_form(packed: UInt16[Array, "groups 9 out"], dtype: DTypeLike) -> Compressed:
    """Returns the weight, whose values have the dtype."""
    groups, _, out = packed.shape
    values = packed[:, :_VALUE_ROWS].reshape(groups * _VALUE_ROWS, out)
    pairs = packed[:, _VALUE_ROWS:] >> jnp.array([[0], [8]], jnp.uint16)
    return Compressed(
        lax.bitcast_convert_type(values, dtype),
        pairs.astype(jnp.uint8).reshape(groups * 2, out),
        NM(2, 4),
        -2,
    )


def unpack_transposed(
    packed: UInt16[Array, "groups 9 out"], dtype: DTypeLike
) -> Compressed:
    """Returns the transpose `[out, k]` of the weight, with groups along `out`.

    On one device, or of one shard, by the kernel if it is available.
    """
    groups, _, out = packed.shape
    k = 16 * groups

    def by_xla(packed: Array) -> tuple[Array, Array]:
        weight = decompress(unpack_form(packed, dtype))
        (form,) = compress_both(weight, None, NM(2, 4), dtype, (-1,))
        return form.values, form.indices

    def by_kernel(packed: Array) -> tuple[Array, Array]:
        shapes = (
            jax.ShapeDtypeStruct((out // 2, k), dtype),
            jax.ShapeDtypeStruct((out // 8, k), jnp.uint8),
        )
        transpose = jax.ffi.ffi_call(cuda_target.target(_KERNEL), shapes)
        values, indices = transpose(
            packed, source="packed", along_k=False, along_out=True
        )
        return values, indices

    suits = out % 8 == 0 and packed.size and k <= _MAX_ROWS
    if suits and not cuda_target.unavailable(_KERNEL):
        values, indices = kernel_on_gpu(by_kernel, by_xla, packed)
    else:
        values, indices = by_xla(packed)
    return Compressed(values, indices, NM(2, 4), -2)
