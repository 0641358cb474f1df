"""Running sums over the tokens of a leaf's inputs: of their squares or products."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, Int32, Shaped

from jaxsparse._calibration.channel_index import ChannelIndex
from jaxsparse._calibration.leaf_factors import unknown_factors
from jaxsparse._calibration.matrices import LayerMatrices
from jaxsparse._trace import ProductInputs


#: The value of `Accumulator.bad_batch` as long as no batch was bad.
NO_BAD_BATCH = int(np.iinfo(np.int32).max)


#: The fewest inputs of which all are zero only if the token was not sent. A rectifier
#: may well set a few to zero by chance.
_ROUTED_INPUTS = 16


class Accumulator(NamedTuple):
    """The sums over tokens for one leaf.

    Attributes:
      sums: `[problem, input]` of squares, or `[problem, input, input]` of products.
      tokens: the number of tokens of each problem; the sum of their weights, if any.
      bad_batch: the first batch with a non-finite sum or a negative weight.
      factors: what the leaf is multiplied by before its product (see `leaf_factors`),
        or None.
    """

    sums: Float32[Array, "problem input ..."]
    tokens: Float32[Array, " problem"]
    bad_batch: Int32[Array, ""]
    factors: Float32[Array, "..."] | None = None


def empty_accumulator(matrices: LayerMatrices, *, products: bool) -> Accumulator:
    """Returns an accumulator of zeros.

    Args:
      matrices: the problems, inputs and outputs of the leaf.
      products: whether to sum the products of every two inputs, not only squares.
    """
    problems, inputs = matrices.num_problems, matrices.inputs_per_problem
    shape = (problems, inputs, inputs) if products else (problems, inputs)
    return Accumulator(
        jnp.zeros(shape, jnp.float32),
        jnp.zeros((problems,), jnp.float32),
        jnp.asarray(NO_BAD_BATCH, jnp.int32),
        unknown_factors(matrices.shape) if matrices.scaled else None,
    )


def accumulate(
    accumulator: Accumulator,
    inputs: ProductInputs,
    index: ChannelIndex,
    weights: Array | None,
    batch: Array,
) -> Accumulator:
    """Adds the inputs of one product.

    Args:
      accumulator: the sums so far.
      inputs: the inputs of the product.
      index: the problems and inputs of the leaf that they belong to.
      weights: bool or real token weights along the leading token axes, or None.
      batch: the number of the batch, recorded if its sums are not finite.

    Raises:
      ValueError: the inputs are complex, the weights do not fit the tokens, or experts
        have their inputs in different orders.
    """
    if jnp.issubdtype(inputs.x.dtype, jnp.complexfloating):
        raise ValueError(
            f"their dtype is {inputs.x.dtype}, and only real inputs are supported"
        )
    x = _in_leaf_order(inputs.x, index.input, accumulator.sums.shape[1])
    weights = _weight_per_token(weights, x.shape[1:-1])
    products = accumulator.sums.ndim == 3
    sums, tokens = _sum_sets(x, weights, inputs, products=products)
    problem = index.problem
    if inputs.groups > 1:
        group = np.arange(inputs.groups, dtype=np.int32)
        problem = problem * np.int32(inputs.groups) + group
    is_good = jnp.isfinite(sums).all() & (weights >= jnp.zeros((), weights.dtype)).all()
    bad_batch = jnp.minimum(accumulator.bad_batch, batch)
    return Accumulator(
        _add_at(accumulator.sums, problem, sums),
        _add_at(accumulator.tokens, problem, tokens),
        jnp.where(is_good, accumulator.bad_batch, bad_batch),
        accumulator.factors,
    )


def _sum_sets(
    x: Shaped[Array, "set *token input"],
    weights: Shaped[Array, "*token"],
    inputs: ProductInputs,
    *,
    products: bool,
) -> tuple[Array, Array]:
    """Returns the weighted sums and the number of tokens, for each set of tokens.

    Where sets are problems, such as experts, a token whose inputs are all zero is one
    that was not sent to the problem, or an unused slot, and is not counted.
    """
    zero = jnp.zeros((), weights.dtype)

    def sum_members(x: Array, members: Array) -> tuple[Array, Array]:
        return _sum(x, jnp.where(members, weights, zero), products=products)

    if inputs.members is not None:
        return lax.map(lambda members: sum_members(x[0], members), inputs.members)
    if len(x) > 1 and inputs.groups == 1 and x.shape[-1] >= _ROUTED_INPUTS:
        members = (x != jnp.zeros((), x.dtype)).any(-1)  # NaN is not zero
        return jax.vmap(sum_members)(x, members)
    return jax.vmap(partial(_sum, products=products), (0, None))(x, weights)


def _sum(
    x: Shaped[Array, "*token input"], weights: Shaped[Array, "*token"], products: bool
) -> tuple[Array, Array]:
    """Returns the weighted sum over tokens of squares or products, and of weights."""
    token_axes = tuple(range(x.ndim - 1))
    count = jnp.sum(weights, dtype=jnp.float32)
    counts = weights[..., None] != jnp.zeros((), weights.dtype)
    x = jnp.where(counts, x, jnp.zeros((), x.dtype))  # padding may be NaN
    weighted = x
    narrow = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize <= 2
    if weights.dtype != jnp.bool_ or not narrow:
        # Products of 16-bit floats are exact in float32: they need no wider factors.
        x = x.astype(jnp.float32)
        weighted = x * weights[..., None].astype(jnp.float32)
    if not products:
        squares = weighted.astype(jnp.float32) * x.astype(jnp.float32)
        return jnp.sum(squares, token_axes), count
    return lax.dot_general(
        weighted,
        x,
        ((token_axes, token_axes), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
        out_sharding=_replicated(x),
    ), count


def _replicated(x: Array) -> NamedSharding | None:
    """Returns the sharding of a sum over tokens, which explicit mesh axes require."""
    sharding = jax.typeof(x).sharding
    if all(names is None for names in sharding.spec):
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(None, None))


def _weight_per_token(weights: Array | None, tokens: tuple[int, ...]) -> Array:
    """Returns an array of shape `tokens`, from weights along leading axes."""
    if weights is None:
        return jnp.ones(tokens, jnp.bool_)
    merged = weights.ndim > 1 and tokens[:1] == (weights.size,)
    if not merged and tokens[: weights.ndim] != weights.shape:
        raise ValueError(
            f"weights of shape {weights.shape} do not fit tokens of shape {tokens}: "
            "their shape must be that of the leading token axes, or have as many "
            "elements as the first one"
        )
    if merged:
        weights = weights.reshape(-1)
    trailing = (1,) * (len(tokens) - weights.ndim)
    return jnp.broadcast_to(weights.reshape(*weights.shape, *trailing), tokens)


def _in_leaf_order(
    x: Shaped[Array, "set *token input"], index: Any, size: int
) -> Shaped[Array, "set *token leaf_input"]:
    """Returns the inputs in the leaf's order, zero where the product has none."""
    if _is_arange(index, size):
        return x
    if len(index) != len(x):
        raise ValueError(
            "experts that have their inputs in different orders are not supported"
        )

    def scatter(x: Array, index: Array) -> Array:
        zeros = jnp.zeros((*x.shape[:-1], size), x.dtype)
        return zeros.at[..., index].add(x, mode="drop")

    return jax.vmap(scatter)(x, jnp.asarray(index))


def _add_at(total: Array, problem: Any, new: Array) -> Array:
    if _is_arange(problem, total.shape[0]):
        return total + new
    return total.at[problem].add(new)


def _is_arange(index: Any, size: int) -> bool:
    """Whether an index is `arange(size)`, and not traced."""
    is_static = isinstance(index, np.ndarray) and index.shape[-1] == size
    return is_static and bool(np.all(index == np.arange(size)))
