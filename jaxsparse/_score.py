"""Integer keys: the one total order by which weights are ranked.

Floats are ranked by their bits, not by float comparison. Comparing floats on a CPU
flushes subnormals to zero and makes NaN neither larger nor smaller than anything; the
bits have neither trouble, and integer comparison vectorises better. In the order of
the keys plus and minus zero tie, subnormals are distinct, infinities rank above all
finite values and all NaNs are equal and rank highest, so that neither is pruned away
unseen.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float32, UInt


def check_rankable(dtype) -> None:
    """Raises `TypeError` unless weights of `dtype` have a magnitude order."""
    real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    # A float8 of exponents only (a scale of a microscaling format) has no sign, no zero
    # and values that every wider format's arithmetic flushes.
    if not real or dtype == jnp.float8_e8m0fnu:
        raise TypeError(
            f"dtype {dtype} has no magnitude order that can be pruned by: "
            "give real floats or integers"
        )


def magnitude_key(weight: jax.typing.ArrayLike) -> UInt[Array, "..."]:
    """Unsigned integers ordered as `abs(weight)`, the most negative integer included.

    Args:
      weight: real floats or integers of any width and shape.

    Returns:
      Keys of the same shape, as wide as the weight (formats under 16 bits may widen).
      A key is zero exactly where the weight is.
    """
    weight = _as_ranked(weight)
    bits = _bits(weight)
    if jnp.issubdtype(weight.dtype, jnp.floating):
        return jnp.minimum(bits & (_sign(bits) - 1), _nan_key(weight.dtype))
    if jnp.issubdtype(weight.dtype, jnp.signedinteger):
        return jnp.where(weight < 0, -bits, bits)  # in unsigned arithmetic -(-128) fits
    return bits


def score_key(score: jax.typing.ArrayLike) -> UInt[Array, "..."]:
    """Unsigned integers ordered as `score`, which may be negative.

    Args:
      score: real floats or integers of any width and shape.

    Returns:
      Keys of the same shape; minus infinity is the lowest of the floats, NaN the
      highest.
    """
    score = _as_ranked(score)
    bits = _bits(score)
    sign = _sign(bits)
    if jnp.issubdtype(score.dtype, jnp.floating):
        magnitude = jnp.minimum(bits & (sign - 1), _nan_key(score.dtype))
        negative = (bits >= sign) & (magnitude < _nan_key(score.dtype))
        return jnp.where(negative, sign - magnitude, sign + magnitude)
    if jnp.issubdtype(score.dtype, jnp.signedinteger):
        return bits ^ sign
    return bits


def is_zero(x: jax.typing.ArrayLike):
    """True where `x` is plus or minus zero; subnormals are not, as they are on disk."""
    return magnitude_key(x) == 0


def count_true(x: Bool[Array, "..."]) -> Float32[Array, ""]:
    """How many are True, as a float32 that may round but never saturates."""
    # Whole numbers along one axis first: a float32 sum of ones stops at 2**24.
    counts = jnp.sum(jnp.atleast_1d(x), axis=-1, dtype=jnp.int32)
    return jnp.sum(counts.astype(jnp.float32))


def _as_ranked(x) -> Array:
    """The same values in a format whose bits can be ranked."""
    x = jnp.asarray(x)
    check_rankable(x.dtype)
    if jnp.issubdtype(x.dtype, jnp.integer):
        return x.astype(_widened_integer(x.dtype))
    # Formats with infinities, and e4m3fn, put NaN above all finite bits. The others
    # (NaN for minus zero; four bits) are exact in bfloat16.
    ordered = x.dtype.itemsize > 1 or x.dtype in (
        jnp.float8_e3m4,
        jnp.float8_e4m3,
        jnp.float8_e4m3fn,
        jnp.float8_e5m2,
    )
    return x if ordered else x.astype(jnp.bfloat16)


def _widened_integer(dtype):
    """Integers of two and four bits as bytes: no backend computes with less."""
    bits = jnp.iinfo(dtype).bits
    if bits >= 8:
        return dtype
    return jnp.int8 if jnp.issubdtype(dtype, jnp.signedinteger) else jnp.uint8


def _bits(x: Array) -> UInt[Array, "..."]:
    unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    return lax.bitcast_convert_type(x, unsigned)


def _sign(bits: Array) -> Array:
    return jnp.asarray(1 << (8 * bits.dtype.itemsize - 1), bits.dtype)


def _nan_key(dtype) -> Array:
    """The one key of all NaNs: just above infinity, or its own where there is none."""
    largest = _bits(jnp.asarray(jnp.finfo(dtype).max, dtype))
    return largest + jnp.asarray(1 if dtype == jnp.float8_e4m3fn else 2, largest.dtype)
