"""A 2:4 weight as one array, so that devices send it by one collective."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, UInt16

from jaxsparse._compressed.compress_both import compress_both
from jaxsparse._compressed.compressed_array import Compressed, decompress
from jaxsparse._patterns import NM


#: Of every sixteen inputs, eight values and two bytes of indices for each output.
_INPUTS, _VALUES, _ROWS = 16, 8, 9


def packs(weight: Compressed) -> bool:
    """Returns whether a 2:4 weight `[k, out]` can be one array."""
    return weight.values.dtype.itemsize == 2 and weight.shape[0] % _INPUTS == 0


def pack_form(weight: Compressed) -> UInt16[Array, "groups rows out"]:
    """Returns the bits of a 2:4 weight, sharded along either axis as it is."""
    k, out = weight.shape
    values = lax.bitcast_convert_type(weight.values, jnp.uint16)
    values = values.reshape(k // _INPUTS, _VALUES, out)
    low, high = jnp.moveaxis(weight.indices.reshape(-1, 2, out), 1, 0).astype(
        jnp.uint16
    )
    return jnp.concatenate([values, (low | high << 8)[:, None]], 1)


def unpack_form(packed: Array, dtype: jnp.dtype) -> Compressed:
    """Returns the weight whose values have the dtype."""
    groups, _, out = packed.shape
    values = packed[:, :_VALUES].reshape(groups * _VALUES, out)
    both = packed[:, _VALUES]
    indices = jnp.stack([both, both >> 8], 1).astype(jnp.uint8)
    return Compressed(
        lax.bitcast_convert_type(values, dtype),
        indices.reshape(groups * 2, out),
        NM(2, 4),
        -2,
    )


def transpose_form(weight: Compressed) -> Compressed:
    """Returns the transpose of a transposable 2:4 weight with groups along axis -2."""
    (form,) = compress_both(decompress(weight), None, NM(2, 4), weight.dtype, (-1,))
    return form
