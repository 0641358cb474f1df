"""SparseGPT: masks chosen input by input, and weights that compensate for them.

Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in
One-Shot" (2023, arXiv:2301.00774). The outputs of a layer `x @ w` are to be preserved.
Its inputs are processed in order. Where an input is pruned for an output, that output's
weights for later inputs are changed to minimise the error. With `h` the second moment
of the inputs, this takes only the upper triangular `u` with `u.T @ u = inv(h)`: pruning
`w[i]` costs `(w[i] / u[i, i]) ** 2`, and subtracts `w[i] / u[i, i] * u[i]` from the
weights, which are zero at input `i` then and change only at later ones.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float32


#: The number of inputs, at most, whose errors are passed on to all later ones in one
#: matmul.
BLOCK = 128

_Matrix = Float32[Array, "input output"]
_Mask = Bool[Array, "input output"]

#: `(scores, first input) -> mask`, for consecutive inputs.
Choose = Callable[[Float32[Array, "slice output"], Array], Bool[Array, "slice output"]]


class Factor(NamedTuple):
    """The factor of an inverse second moment.

    Attributes:
      upper: `u`, with `u.T @ u` the inverse of the damped second moment.
      dead: the inputs that were always zero. They are pruned first, and do not enter
        any error.
      damping: the value added to the diagonal, as a fraction of its mean over all
        other inputs.
    """

    upper: Float32[Array, "input input"]
    dead: Bool[Array, " input"]
    damping: Float32[Array, ""]


def inverse_factor(
    moment: Float32[Array, "input input"], damping: ArrayLike, tries: int = 6
) -> Factor:
    """Factors the inverse of a second moment.

    Args:
      moment: the second moment.
      damping: the fraction of the mean of the diagonal that is added to the diagonal;
        increased tenfold each time that the factor is not finite.
      tries: how often damping may be increased.

    Returns:
      The factor, not finite if every try failed.
    """
    diagonal = jnp.diagonal(moment)
    dead = diagonal == 0
    live = jnp.maximum(jnp.sum(~dead), 1).astype(jnp.float32)
    mean = jnp.sum(diagonal) / live
    dead_diagonal = jnp.where(dead, mean, jnp.zeros((), jnp.float32))

    def factor(damping):
        damped = moment + jnp.diag(dead_diagonal + damping * mean)
        # Cholesky returns lower @ lower.T; reversed, the factors are upper triangular.
        lower = jnp.linalg.cholesky(damped[::-1, ::-1], symmetrize_input=False)
        identity = jnp.eye(len(moment), dtype=jnp.float32)
        return solve_triangular(lower[::-1, ::-1], identity, lower=False)

    def has_failed(carry):
        _, upper, tried = carry
        return ~jnp.isfinite(upper).all() & (tried < tries)

    def retry(carry):
        damping, _, tried = carry
        return 10 * damping, factor(10 * damping), tried + 1

    first = jnp.asarray(damping, jnp.float32)
    start = (first, factor(first), jnp.zeros((), jnp.int32))
    last, upper, _ = lax.while_loop(has_failed, retry, start)
    return Factor(upper, dead, last)


def sparsegpt(
    weight: _Matrix,
    factor: Factor,
    choose: Choose,
    at_once: int,
    acting: _Mask | None = None,
) -> tuple[_Matrix, _Mask]:
    """Prunes one matrix.

    Args:
      weight: the weights.
      factor: the factor of the inverse second moment of the inputs.
      choose: returns the mask of consecutive inputs from their scores; True = kept.
      at_once: the number of inputs whose mask is chosen together, up to `BLOCK`.
      acting: False for weights that reach no output. They are pruned first, and where
        they are kept they are zero, and compensate for nothing.

    Returns:
      The updated weights, with exact zeros where they are pruned, and the mask.
    """
    inputs, outputs = weight.shape
    block = BLOCK // at_once * at_once
    padding = -inputs % block
    # The last block is filled with inputs that nothing depends on.
    weight = jnp.pad(weight, ((0, padding), (0, 0)))
    if acting is not None:
        acting = jnp.pad(acting, ((0, padding), (0, 0)))
    upper = jnp.pad(factor.upper, ((0, padding), (0, padding)))
    is_padding = jnp.arange(inputs + padding) >= inputs
    upper += jnp.diag(is_padding.astype(jnp.float32))
    dead = jnp.pad(factor.dead, (0, padding), constant_values=True)
    cost = jnp.where(dead, 0, 1 / jnp.diagonal(upper))

    def prune_block(weight, start):
        upper_rows = lax.dynamic_slice_in_dim(upper, start, block)
        upper_block = lax.dynamic_slice_in_dim(upper_rows, start, block, axis=1)
        weights = lax.dynamic_slice_in_dim(weight, start, block)
        costs = lax.dynamic_slice_in_dim(cost, start, block)
        weights, mask, errors = _prune_block(
            weights, upper_block, costs, choose, at_once, start, acting
        )
        weight -= jnp.matmul(upper_rows.T, errors, precision=lax.Precision.HIGHEST)
        return lax.dynamic_update_slice_in_dim(weight, weights, start, axis=0), mask

    starts = jnp.arange(0, inputs + padding, block, dtype=jnp.int32)
    weight, masks = lax.scan(prune_block, weight, starts)
    mask = masks.reshape(-1, outputs)[:inputs]
    return weight[:inputs], mask


def _prune_block(
    weights: _Matrix,
    upper: Float32[Array, "input input"],
    costs: Float32[Array, " input"],
    choose: Choose,
    at_once: int,
    start: Array,
    acting: _Mask | None,
) -> tuple[_Matrix, _Mask, _Matrix]:
    """Prunes the inputs of one block.

    Returns:
      The weights, the mask, and the errors to be passed on to later blocks.
    """
    inputs, outputs = weights.shape

    def prune_inputs(carry, first):
        weights, errors = carry
        candidates = lax.dynamic_slice_in_dim(weights, first, at_once)
        cost = lax.dynamic_slice_in_dim(costs, first, at_once)
        scores = _where_acting(
            jnp.abs(candidates) * cost[:, None], acting, start + first
        )
        mask = choose(scores, start + first)
        changing = _where_acting(mask, acting, start + first)

        def prune_input(i, carry):
            kept = lax.dynamic_index_in_dim(changing, i, keepdims=False)
            weights, errors = carry
            return _prune_input(weights, errors, upper, kept, first + i)

        carry = lax.fori_loop(
            0, at_once, prune_input, (weights, errors), unroll=at_once <= 16
        )
        return carry, mask

    firsts = jnp.arange(0, inputs, at_once, dtype=jnp.int32)
    carry = weights, jnp.zeros_like(weights)
    (weights, errors), masks = lax.scan(prune_inputs, carry, firsts)
    return weights, masks.reshape(inputs, outputs), errors


def _where_acting(values: Array, acting: _Mask | None, first: Array) -> Array:
    """Returns values of consecutive inputs, with zeros where weights do not act."""
    if acting is None:
        return values
    acts = lax.dynamic_slice_in_dim(acting, first, len(values))
    return jnp.where(acts, values, jnp.zeros((), values.dtype))


def _prune_input(
    weights: _Matrix,
    errors: _Matrix,
    upper: Float32[Array, "input input"],
    kept: Bool[Array, " output"],
    i: Array,
) -> tuple[_Matrix, _Matrix]:
    """Prunes input `i` where it is not kept, and updates the later inputs."""
    weight = lax.dynamic_index_in_dim(weights, i, keepdims=False)
    factors = lax.dynamic_index_in_dim(upper, i, keepdims=False)
    error = jnp.where(kept, 0, weight / factors[i])
    weights -= factors[:, None] * error[None]
    pruned = jnp.where(kept, weight, 0)
    weights = lax.dynamic_update_index_in_dim(weights, pruned, i, axis=0)
    return weights, lax.dynamic_update_index_in_dim(errors, error, i, axis=0)
