"""Integer keys: the one total order by which weights are ranked.

Floats are ranked by their bits, not by float comparison. Comparing floats on a CPU
flushes subnormals to zero and makes NaN neither larger nor smaller than anything; the
bits have neither trouble, and integer comparison vectorises better. In the order of
the keys plus and minus zero tie, subnormals are distinct, infinities rank above all
finite values and all NaNs are equal and rank highest, so that neither is pruned away
unseen.

Keys are signed integers that leave room for one above the highest and one below the
lowest. Only those of integers of 32 bits and more fill their type: they are unsigned.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float32, Integer


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


class RankKeys(NamedTuple):
    """What is to be ranked: the key of each place is `min(bits & counted, top)`.

    A search computes the keys itself, in the pass that reads the weights.

    Attributes:
      bits: integers of any shape.
      counted: which bits count.
      top: the highest key.
    """

    bits: Integer[Array, "..."]
    counted: int
    top: int

    @property
    def keys(self) -> Integer[Array, "..."]:
        """The keys, of 16 bits or more, in the shape of `bits`."""
        kept = self.bits & jnp.asarray(self.counted, self.bits.dtype)
        if kept.dtype == jnp.int8:
            kept = kept.astype(jnp.int16)
        return jnp.minimum(kept, jnp.asarray(self.top, kept.dtype))

    @property
    def full_range(self) -> bool:
        """Whether the keys leave no room above the highest and below the lowest."""
        return jnp.issubdtype(self.bits.dtype, jnp.unsignedinteger)

    @property
    def lowest(self) -> int:
        """Bits whose key no place has, or at worst the lowest."""
        return int(jnp.iinfo(self.bits.dtype).min) if self.counted == -1 else 0


def rank_by_magnitude(weight: jax.typing.ArrayLike) -> RankKeys:
    """Ranks by `abs(weight)`, the most negative integer included.

    Args:
      weight: real floats or integers of any width and shape.

    Returns:
      What has key zero exactly where the weight is zero.
    """
    weight = _as_ranked(weight)
    if jnp.issubdtype(weight.dtype, jnp.floating):
        bits = _bits(weight)
        return RankKeys(bits, int(jnp.iinfo(bits.dtype).max), _nan_key(weight.dtype))
    if jnp.issubdtype(weight.dtype, jnp.signedinteger):
        unsigned = weight.astype(jnp.dtype(f"uint{8 * weight.dtype.itemsize}"))
        weight = jnp.where(weight < 0, -unsigned, unsigned)  # there -(-128) fits
    return _all_of(_with_room(weight))


def rank_by_value(score: jax.typing.ArrayLike) -> RankKeys:
    """Ranks by `score`, which may be negative.

    Args:
      score: real floats or integers of any width and shape.

    Returns:
      What ranks minus infinity lowest of the floats, NaN highest.
    """
    score = _as_ranked(score)
    if jnp.issubdtype(score.dtype, jnp.floating):
        negative = (_bits(score) < 0) & ~jnp.isnan(score)
        magnitude = rank_by_magnitude(score).keys
        return _all_of(jnp.where(negative, -magnitude, magnitude))
    if score.dtype.itemsize >= 4 and jnp.issubdtype(score.dtype, jnp.signedinteger):
        unsigned = jnp.dtype(f"uint{8 * score.dtype.itemsize}")
        sign = jnp.asarray(1 << (8 * score.dtype.itemsize - 1), unsigned)
        return _all_of(score.astype(unsigned) ^ sign)
    return _all_of(_with_room(score))


def rank_within(ranked: RankKeys, kept: Bool[Array, "..."]) -> RankKeys:
    """Ranks the places that are not kept below all others, where keys leave room."""
    assert not ranked.full_range, "the caller checks the dtype"
    keys = ranked.keys
    return _all_of(jnp.where(kept, keys, jnp.iinfo(keys.dtype).min))


def rank_above(ranked: RankKeys, kept: Bool[Array, "..."]) -> RankKeys:
    """Ranks the places that are kept, as equals, above all others; of floats only."""
    keys = ranked.keys
    # A search adds one to keys, and two above those of NaNs there is room in any width.
    highest = jnp.iinfo(keys.dtype).max - 1
    return _all_of(jnp.where(kept, jnp.asarray(highest, keys.dtype), keys))


def wide_float(*dtypes: jnp.dtype) -> jnp.dtype:
    """The float in which numbers of these dtypes are added, multiplied and compared.

    Float32, or float64 where one of them has more than 32 bits; strict promotion of
    dtypes would refuse to mix them.
    """
    wide = any(dtype.itemsize > 4 for dtype in dtypes)
    return jnp.dtype("float64" if wide else "float32")


def is_zero(x: jax.typing.ArrayLike):
    """True where `x` is plus or minus zero; subnormals are not, as they are on disk."""
    return rank_by_magnitude(x).keys == 0


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


def _with_room(x: Array) -> Array:
    """Integers in a signed type with values to spare, up to 16 bits; others as are."""
    return (
        x.astype(jnp.dtype(f"int{16 * x.dtype.itemsize}"))
        if x.dtype.itemsize < 4
        else x
    )


def _all_of(keys: Array) -> RankKeys:
    """Integers that are the keys themselves."""
    top = int(jnp.iinfo(keys.dtype).max)
    signed = jnp.issubdtype(keys.dtype, jnp.signedinteger)
    return RankKeys(keys, -1 if signed else top, top)


def _bits(x: Array) -> Integer[Array, "..."]:
    return lax.bitcast_convert_type(x, jnp.dtype(f"int{8 * x.dtype.itemsize}"))


def _nan_key(dtype) -> int:
    """The one key of all NaNs: just above infinity, or its own where there is none."""
    largest = np.asarray(jnp.finfo(dtype).max, dtype)
    bits = int(largest.view(f"int{8 * largest.itemsize}"))
    return bits + (1 if dtype == jnp.float8_e4m3fn else 2)
