"""SparseGPT: masks chosen column by column, and weights that make up for them.

Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in
One-Shot" (2023, arXiv:2301.00774). A layer `x @ w` is to keep its outputs. Its inputs
are gone through in order; where one is pruned for an output, the weights of that output
for the inputs still to come are changed so that the error is least. With `h` the second
moment of the inputs, all it takes is the upper triangular `u` with `u.T @ u = inv(h)`:
row `i` of `u` says what the later weights have to do for an error of the `i`-th, whose
cost is `(w[i] / u[i, i]) ** 2`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float32


#: Of about so many inputs the errors are handed on to all later ones together.
BLOCK = 128

_Matrix = Float32[Array, "input output"]
_Mask = Bool[Array, "input output"]

#: `(scores, first input) -> mask`, of some consecutive inputs.
Choose = Callable[[Float32[Array, "some output"], Array], Bool[Array, "some output"]]


class Factor(NamedTuple):
    """The factor of an inverse second moment.

    Attributes:
      upper: `u`, with `u.T @ u` the inverse of the damped second moment.
      dead: the inputs that were always zero; they are pruned first, and have no part
        in any error.
      damping: what was added to the diagonal, as a fraction of its mean over all other
        inputs.
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
      damping: a fraction of the mean of the diagonal that is added to it; ten times as
        much each time that there is no finite factor.
      tries: how often that may be.

    Returns:
      The factor, not finite where every try failed.
    """
    diagonal = jnp.diagonal(moment)
    dead = diagonal == 0
    live = jnp.maximum(jnp.sum(~dead), 1).astype(jnp.float32)
    mean = jnp.sum(diagonal) / live
    own = jnp.where(dead, mean, jnp.zeros((), jnp.float32))

    def attempt(damping):
        damped = moment + jnp.diag(own + damping * mean)
        # Cholesky gives lower @ lower.T; read backwards the factors are upper ones.
        lower = jnp.linalg.cholesky(damped[::-1, ::-1], symmetrize_input=False)
        identity = jnp.eye(len(moment), dtype=jnp.float32)
        return solve_triangular(lower[::-1, ::-1], identity, lower=False)

    first = jnp.asarray(damping, jnp.float32)
    failed = lambda tried: ~jnp.isfinite(tried[1]).all() & (tried[2] < tries)
    again = lambda tried: (10 * tried[0], attempt(10 * tried[0]), tried[2] + 1)
    start = (first, attempt(first), jnp.zeros((), jnp.int32))
    damped, upper, _ = lax.while_loop(failed, again, start)
    return Factor(upper, dead, damped)


def sparsegpt(
    weight: _Matrix, factor: Factor, choose: Choose, at_once: int
) -> tuple[_Matrix, _Mask]:
    """Prunes one matrix.

    Args:
      weight: the weights.
      factor: of the inverse second moment of the inputs.
      choose: makes the mask of inputs of which the scores are known; True = kept.
      at_once: for how many inputs; up to `BLOCK`.

    Returns:
      The weights, updated, with exact zeros at pruned places, and the mask.
    """
    size, outputs = weight.shape
    block = BLOCK // at_once * at_once
    padding = -size % block
    # Inputs that nothing depends on fill the last block.
    weight = jnp.pad(weight, ((0, padding), (0, 0)))
    upper = jnp.pad(factor.upper, ((0, padding), (0, padding)))
    upper += jnp.diag((jnp.arange(size + padding) >= size).astype(jnp.float32))
    dead = jnp.pad(factor.dead, (0, padding), constant_values=True)
    cost = jnp.where(dead, 0, 1 / jnp.diagonal(upper))

    def one_block(weight, start):
        rows = lax.dynamic_slice_in_dim(upper, start, block)
        inner = lax.dynamic_slice_in_dim(rows, start, block, axis=1)
        own = lax.dynamic_slice_in_dim(weight, start, block)
        costs = lax.dynamic_slice_in_dim(cost, start, block)
        own, mask, errors = _block(own, inner, costs, choose, at_once, start)
        weight -= jnp.matmul(rows.T, errors, precision=lax.Precision.HIGHEST)
        return lax.dynamic_update_slice_in_dim(weight, own, start, axis=0), mask

    starts = jnp.arange(0, size + padding, block, dtype=jnp.int32)
    weight, masks = lax.scan(one_block, weight, starts)
    mask = masks.reshape(-1, outputs)[:size]
    return weight[:size], mask


def _block(own, upper, costs, choose: Choose, at_once: int, start):
    """Prunes the inputs of a block; their errors are for all that follow."""
    size, outputs = own.shape

    def some(carried, first):
        own, errors = carried
        part = lax.dynamic_slice_in_dim(own, first, at_once)
        weighed = lax.dynamic_slice_in_dim(costs, first, at_once)
        mask = choose(jnp.abs(part) * weighed[:, None], start + first)

        def one(i, carried):
            own, errors = carried
            row = lax.dynamic_index_in_dim(own, first + i, keepdims=False)
            after = lax.dynamic_index_in_dim(upper, first + i, keepdims=False)
            kept = lax.dynamic_index_in_dim(mask, i, keepdims=False)
            error = jnp.where(kept, 0, row / after[first + i])
            own -= after[:, None] * error
            pruned = jnp.where(kept, row, 0)
            own = lax.dynamic_update_index_in_dim(own, pruned, first + i, axis=0)
            return own, lax.dynamic_update_index_in_dim(
                errors, error, first + i, axis=0
            )

        carried = lax.fori_loop(0, at_once, one, (own, errors), unroll=at_once <= 16)
        return carried, mask

    firsts = jnp.arange(0, size, at_once, dtype=jnp.int32)
    (own, errors), masks = lax.scan(some, (own, jnp.zeros_like(own)), firsts)
    return own, masks.reshape(size, outputs), errors
