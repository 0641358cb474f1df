"""Sums over the tokens that meet a leaf: of its inputs' squares, or of all products."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, Int32, Shaped

from jaxsparse._calibration.channel_index import ChannelIndex
from jaxsparse._calibration.matrices import LayerMatrices
from jaxsparse._trace import ProductInputs


#: The batch that a tally names as bad as long as there is none.
NO_BAD_BATCH = int(np.iinfo(np.int32).max)


class Accumulator(NamedTuple):
    """What was added up of the inputs of a leaf.

    Attributes:
      sums: `[problem, input]` of squares, or `[problem, input, input]` of products.
      tokens: how many there were in each problem, by their weights.
      bad: the first batch in which a sum was not finite, or a weight negative.
    """

    sums: Float32[Array, "problem input ..."]
    tokens: Float32[Array, " problem"]
    bad: Int32[Array, ""]


def empty_accumulator(columns: LayerMatrices, *, products: bool) -> Accumulator:
    """A tally of nothing: of products of inputs, or of their squares alone."""
    channels = (columns.channels,) * (2 if products else 1)
    return Accumulator(
        jnp.zeros((columns.problems, *channels), jnp.float32),
        jnp.zeros((columns.problems,), jnp.float32),
        jnp.asarray(NO_BAD_BATCH, jnp.int32),
    )


def accumulate(
    tally: Accumulator,
    rows: ProductInputs,
    places: ChannelIndex,
    weights: Array | None,
    batch: Array,
) -> Accumulator:
    """Adds the inputs of one product.

    Args:
      tally: what there is.
      rows: the inputs.
      places: where they belong.
      weights: bool or real numbers of the leading token axes, or None.
      batch: the number of the batch, which is remembered if its sums are not finite.

    Raises:
      ValueError: the weights do not fit the tokens.
    """
    products = tally.sums.ndim == 3
    if jnp.issubdtype(rows.x.dtype, jnp.complexfloating):
        raise ValueError(f"they are {rows.x.dtype}, only real ones are read")
    x = _in_channels(rows.x, places.channel, tally.sums.shape[-1])
    tokens = x.shape[1:-1]
    weights = _of_tokens(weights, tokens)
    add = lambda x, weights: _sum(x, weights, products)
    if rows.members is None:
        sums, count = jax.vmap(add, (0, None))(x, weights)
    else:
        none = jnp.zeros((), weights.dtype)
        own = lambda members: add(x[0], jnp.where(members, weights, none))
        sums, count = lax.map(own, rows.members)
    problem = places.problem
    if rows.groups > 1:
        problem = problem * np.int32(rows.groups) + np.arange(
            rows.groups, dtype=np.int32
        )
    fine = jnp.isfinite(sums).all() & (weights >= jnp.zeros((), weights.dtype)).all()
    return Accumulator(
        _add_at(tally.sums, problem, sums),
        _add_at(tally.tokens, problem, count),
        jnp.where(fine, tally.bad, jnp.minimum(tally.bad, batch)),
    )


def _sum(
    x: Shaped[Array, "*token input"], weights: Shaped[Array, "*token"], products: bool
) -> tuple[Array, Array]:
    """The weighted sum of squares or products over tokens, and that of the weights."""
    tokens = tuple(range(x.ndim - 1))
    count = jnp.sum(weights, dtype=jnp.float32)
    counts = weights[..., None] != jnp.zeros((), weights.dtype)
    x = jnp.where(counts, x, jnp.zeros((), x.dtype))
    left = x
    narrow = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize <= 2
    if weights.dtype != jnp.bool_ or not narrow:
        # Products of 16-bit floats are exact in float32: they need no wider factors.
        x = x.astype(jnp.float32)
        left = x * weights[..., None].astype(jnp.float32)
    if not products:
        wide = left.astype(jnp.float32) * x.astype(jnp.float32)
        return jnp.sum(wide, tokens), count
    return lax.dot_general(
        left,
        x,
        ((tokens, tokens), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
        out_sharding=_replicated(x),
    ), count


def _replicated(x: Array) -> NamedSharding | None:
    """Over explicit axes of a mesh a sum over tokens has to say where it goes."""
    sharding = jax.typeof(x).sharding
    if all(names is None for names in sharding.spec):
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(None, None))


def _of_tokens(weights: Array | None, tokens: tuple[int, ...]) -> Array:
    """The weight of every token, from those of leading axes."""
    if weights is None:
        return jnp.ones(tokens, jnp.bool_)
    merged = weights.ndim > 1 and tokens[:1] == (weights.size,)
    if not merged and tokens[: weights.ndim] != weights.shape:
        raise ValueError(
            f"weights of shape {weights.shape} do not fit tokens of shape {tokens}: "
            "they have to be the leading axes, or their product the first one"
        )
    if merged:
        weights = weights.reshape(-1)
    rest = (1,) * (len(tokens) - weights.ndim)
    return jnp.broadcast_to(weights.reshape(*weights.shape, *rest), tokens)


def _in_channels(x: Array, channel: Any, channels: int) -> Array:
    """The inputs in the leaf's order of channels, zeros where a product has none."""
    if _is_range(channel, channels):
        return x
    if len(channel) != len(x):
        raise ValueError("experts whose inputs are in different orders are not read")
    put = lambda x, place: (
        jnp.zeros((*x.shape[:-1], channels), x.dtype).at[..., place].add(x, mode="drop")
    )
    return jax.vmap(put)(x, jnp.asarray(channel))


def _add_at(total: Array, place: Any, new: Array) -> Array:
    whole = _is_range(place, total.shape[0])
    return total + new if whole else total.at[place].add(new)


def _is_range(places: Any, size: int) -> bool:
    """Whether places that are known beforehand are all, in order."""
    known = isinstance(places, np.ndarray) and places.shape[-1] == size
    return known and bool(np.all(places == np.arange(size)))
