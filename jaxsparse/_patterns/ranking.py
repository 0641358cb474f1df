"""Integer keys: the one total order by which weights are ranked.

Floats are ranked by their bits, not by float comparison. Comparing floats on a CPU
flushes subnormals to zero, and NaN is neither larger nor smaller than any number.
Comparing bits avoids both and vectorises better. In the order of the keys plus and
minus zero tie, subnormals are distinct, infinities rank above all finite values, and
all NaNs are equal and rank highest, so that neither infinities nor NaNs are pruned
unnoticed.

Keys are signed integers, with at least one value of the dtype above the highest key and
one below the lowest. Only the keys of integers of 32 bits and more use the full range:
they are unsigned.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float32, Integer


def is_rankable(dtype) -> bool:
    """Returns whether weights of `dtype` have a magnitude order."""
    real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    # A float8 of exponents only (a scale of a microscaling format) has no sign, no zero
    # and values that every wider format's arithmetic flushes.
    return real and dtype != jnp.float8_e8m0fnu


def check_rankable(dtype) -> None:
    """Raises `TypeError` unless weights of `dtype` have a magnitude order."""
    if not is_rankable(dtype):
        raise TypeError(
            f"dtype {dtype} has no magnitude order to prune by: give real floats or "
            "integers"
        )


class RankKeys(NamedTuple):
    """The keys of an array in a lazy form: `min(bits & bit_mask, max_key)`.

    A search computes the keys itself, in the pass that reads the weights.

    Attributes:
      bits: integers of any shape.
      bit_mask: the bits that count.
      max_key: the highest key; larger ones are clamped to it.
    """

    bits: Integer[Array, "..."]
    bit_mask: int
    max_key: int

    @property
    def keys(self) -> Integer[Array, "..."]:
        """The keys, of 16 bits or more, in the shape of `bits`."""
        keys = self.bits & jnp.asarray(self.bit_mask, self.bits.dtype)
        if keys.dtype == jnp.int8:
            keys = keys.astype(jnp.int16)
        return jnp.minimum(keys, jnp.asarray(self.max_key, keys.dtype))

    @property
    def full_range(self) -> bool:
        """Whether keys may take every value of their dtype."""
        return jnp.issubdtype(self.bits.dtype, jnp.unsignedinteger)

    @property
    def padding(self) -> int:
        """Bits whose key is lower than that of any element, or equal to the lowest."""
        return int(jnp.iinfo(self.bits.dtype).min) if self.bit_mask == -1 else 0


def rank_by_magnitude(weight: jax.typing.ArrayLike) -> RankKeys:
    """Ranks by `abs(weight)`, the most negative integer included.

    Args:
      weight: real floats or integers of any width and shape.

    Returns:
      Keys that are zero exactly where the weight is zero.
    """
    weight = _as_ranked(weight)
    if jnp.issubdtype(weight.dtype, jnp.floating):
        bits = _bits(weight)
        return RankKeys(bits, int(jnp.iinfo(bits.dtype).max), _nan_key(weight.dtype))
    if jnp.issubdtype(weight.dtype, jnp.signedinteger):
        unsigned = weight.astype(jnp.dtype(f"uint{8 * weight.dtype.itemsize}"))
        weight = jnp.where(weight < 0, -unsigned, unsigned)  # 128 fits in uint8
    return _as_keys(_widened(weight))


def rank_by_value(score: jax.typing.ArrayLike) -> RankKeys:
    """Ranks by `score`, which may be negative.

    Args:
      score: real floats or integers of any width and shape.

    Returns:
      Keys among which that of minus infinity is the lowest and that of NaN the
      highest.
    """
    score = _as_ranked(score)
    if jnp.issubdtype(score.dtype, jnp.floating):
        negative = (_bits(score) < 0) & ~jnp.isnan(score)
        magnitude = rank_by_magnitude(score).keys
        return _as_keys(jnp.where(negative, -magnitude, magnitude))
    if score.dtype.itemsize >= 4 and jnp.issubdtype(score.dtype, jnp.signedinteger):
        unsigned = jnp.dtype(f"uint{8 * score.dtype.itemsize}")
        sign = jnp.asarray(1 << (8 * score.dtype.itemsize - 1), unsigned)
        return _as_keys(score.astype(unsigned) ^ sign)
    return _as_keys(_widened(score))


def rank_within(ranked: RankKeys, kept: Bool[Array, "..."]) -> RankKeys:
    """Ranks weights that a mask prunes below all others.

    Args:
      ranked: keys that do not use the full range of their dtype.
      kept: the mask, of the same shape.
    """
    assert not ranked.full_range, "the caller checks the dtype"
    keys = ranked.keys
    return _as_keys(jnp.where(kept, keys, jnp.iinfo(keys.dtype).min))


def rank_above(ranked: RankKeys, kept: Bool[Array, "..."]) -> RankKeys:
    """Ranks weights that a mask keeps above all others, and equal to each other.

    Args:
      ranked: the keys of floats.
      kept: the mask, of the same shape.
    """
    keys = ranked.keys
    # A search adds 1 to keys; in every float format this is above the key of NaN.
    highest = jnp.iinfo(keys.dtype).max - 1
    return _as_keys(jnp.where(kept, jnp.asarray(highest, keys.dtype), keys))


def wide_float(*dtypes: jnp.dtype) -> jnp.dtype:
    """Returns the float dtype in which numbers of these dtypes are computed with.

    It is float32, or float64 if one of the dtypes has more than 32 bits. Under strict
    dtype promotion operands must be cast to it.
    """
    wide = any(dtype.itemsize > 4 for dtype in dtypes)
    return jnp.dtype("float64" if wide else "float32")


def is_zero(x: jax.typing.ArrayLike):
    """Returns True where `x` is plus or minus zero; subnormals are not zero."""
    return rank_by_magnitude(x).keys == 0


def count_true(x: Bool[Array, "..."]) -> Float32[Array, ""]:
    """Returns the number of True values as a float32, which may round."""
    # Integers along one axis first: a float32 sum of ones saturates at 2**24.
    counts = jnp.sum(jnp.atleast_1d(x), axis=-1, dtype=jnp.int32)
    return jnp.sum(counts.astype(jnp.float32))


def _as_ranked(x) -> Array:
    """Casts to a dtype of the same values whose bits can be ranked."""
    x = jnp.asarray(x)
    check_rankable(x.dtype)
    if jnp.issubdtype(x.dtype, jnp.integer):
        return x.astype(_byte_or_wider(x.dtype))
    # In formats with infinities, and in e4m3fn, the bits of NaN are above all finite
    # ones. The others (NaN in place of minus zero; four bits) are exact in bfloat16.
    is_ordered = x.dtype.itemsize > 1 or x.dtype in (
        jnp.float8_e3m4,
        jnp.float8_e4m3,
        jnp.float8_e4m3fn,
        jnp.float8_e5m2,
    )
    return x if is_ordered else x.astype(jnp.bfloat16)


def _byte_or_wider(dtype):
    """Returns int8 or uint8 for integers of 2 and 4 bits, which no backend computes."""
    bits = jnp.iinfo(dtype).bits
    if bits >= 8:
        return dtype
    return jnp.int8 if jnp.issubdtype(dtype, jnp.signedinteger) else jnp.uint8


def _widened(x: Array) -> Array:
    """Casts integers of 8 and 16 bits to signed integers of twice the width."""
    if x.dtype.itemsize >= 4:
        return x
    return x.astype(jnp.dtype(f"int{16 * x.dtype.itemsize}"))


def _as_keys(keys: Array) -> RankKeys:
    """Returns integers that are keys already as `RankKeys`."""
    largest = int(jnp.iinfo(keys.dtype).max)
    is_signed = jnp.issubdtype(keys.dtype, jnp.signedinteger)
    return RankKeys(keys, -1 if is_signed else largest, largest)


def _bits(x: Array) -> Integer[Array, "..."]:
    return lax.bitcast_convert_type(x, jnp.dtype(f"int{8 * x.dtype.itemsize}"))


def _nan_key(dtype) -> int:
    """Returns the key of all NaNs: just above that of infinity, if there is one."""
    largest = np.asarray(jnp.finfo(dtype).max, dtype)
    bits = int(largest.view(f"int{8 * largest.itemsize}"))
    return bits + (1 if dtype == jnp.float8_e4m3fn else 2)
