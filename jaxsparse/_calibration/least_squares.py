"""The weights under a mask that best preserve a layer's outputs.

Each output has its own normal equations, over the inputs that its mask keeps. They are
solved for the change of the kept weights that compensates for the pruned ones.
"""

import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Bool, Float32, Int

from jaxsparse._calibration.leaf_factors import acting_weights
from jaxsparse._calibration.leaf_statistics import LeafStatistics
from jaxsparse._calibration.map_solves import map_solves


#: The bytes of normal equations that are solved at once, except on a CPU.
_BATCH_BYTES = 2**28

#: The first damping, as a fraction of the mean of the diagonal.
_DAMPING = 1e-6

#: How often the solution is corrected for rounding and damping.
_REFINEMENTS = 3


def masked_least_squares(
    weight: Float32[Array, "input output"],
    mask: Bool[Array, "input output"],
    moment: Float32[Array, "input input"],
) -> Float32[Array, "input output"]:
    """Minimises `(w - v).T @ moment @ (w - v)` over `v` that are zero outside a mask.

    Args:
      weight: `w`, the weights of a layer.
      mask: True where `v` may be non-zero.
      moment: the second moment of the layer's inputs. Kept weights of inputs that were
        always zero are left unchanged.

    Returns:
      `v`, with exact zeros outside the mask. If the second moment is singular, or
      nearly so, there are several minimisers, and `v` is one close to `w`.
    """
    dead = jnp.diagonal(moment) == 0
    scale = _scale(moment)

    def solve_output(weight, mask):
        free = mask & ~dead
        lower = _factor_free(moment, free, scale)
        fitted = jnp.where(mask, weight, 0)
        for _ in range(_REFINEMENTS):
            slope = jnp.matmul(moment, weight - fitted, precision=lax.Precision.HIGHEST)
            change = cho_solve((lower, True), jnp.where(free, slope, 0))
            fitted += jnp.where(free, change, 0)
        return fitted

    outputs = weight.shape[1]
    batch_size = min(max(1, _BATCH_BYTES // moment.nbytes), outputs)
    return map_solves(solve_output, weight.T, mask.T, batch_size=batch_size).T


def leaf_least_squares(
    statistics: LeafStatistics,
    weights: Float32[Array, "problem input output"],
    masks: Bool[Array, "problem input output"],
    moments: Float32[Array, "problem input input"],
) -> Float32[Array, "problem input output"]:
    """As `masked_least_squares`, for all problems of a leaf.

    Weights whose factor is zero compensate for nothing, so they count as pruned.
    """
    acting = acting_weights(statistics)
    if acting is not None:
        masks &= acting
    return map_solves(masked_least_squares, weights, masks, moments)


def kept_least_squares(
    weight: Float32[Array, "input output"],
    kept: Int[Array, " kept"],
    moment: Float32[Array, "input input"],
) -> Float32[Array, "input output"]:
    """As `masked_least_squares`, where all outputs keep the same inputs.

    Their normal equations are the same, and are factored once.

    Args:
      weight: the weights of a layer.
      kept: the inputs that are kept, each once.
      moment: the second moment of the layer's inputs.

    Returns:
      The fitted weights, with exact zeros for the inputs that are not kept.
    """
    rows = moment[kept]
    equations = rows[:, kept]
    free = jnp.diagonal(equations) > 0
    lower = _factor_free(equations, free, _scale(moment))

    def correct(_, fitted):
        slope = jnp.matmul(rows, weight - fitted, precision=lax.Precision.HIGHEST)
        change = cho_solve((lower, True), jnp.where(free[:, None], slope, 0))
        return fitted.at[kept].add(jnp.where(free[:, None], change, 0))

    first = jnp.zeros_like(weight).at[kept].set(weight[kept])
    return lax.fori_loop(0, _REFINEMENTS, correct, first)


def _scale(moment: Float32[Array, "input input"]) -> Float32[Array, ""]:
    """Returns the mean square of the inputs that were not always zero."""
    diagonal = jnp.diagonal(moment)
    live = jnp.maximum(jnp.sum(diagonal != 0), 1).astype(jnp.float32)
    return jnp.sum(diagonal) / live


def _factor_free(
    moment: Float32[Array, "input input"],
    free: Bool[Array, " input"],
    scale: Float32[Array, ""],
) -> Float32[Array, "input input"]:
    """Returns the Cholesky factor of the damped equations of the free weights.

    The equations of all other weights are those of a diagonal matrix. Damping grows
    tenfold until the factor is finite, or the damping reaches 1.
    """
    both_free = free[:, None] & free[None, :]
    equations = jnp.where(both_free, moment, 0) + jnp.diag(jnp.where(free, 0, scale))
    identity = jnp.eye(len(free), dtype=jnp.float32)

    def factor(damping):
        damped = equations + damping * scale * identity
        return jnp.linalg.cholesky(damped, symmetrize_input=False)

    def has_failed(carry):
        damping, lower = carry
        return ~jnp.isfinite(lower).all() & (damping < 1)

    def retry(carry):
        damping = 10 * carry[0]
        return damping, factor(damping)

    first = jnp.asarray(_DAMPING, jnp.float32)
    _, lower = lax.while_loop(has_failed, retry, (first, factor(first)))
    return lower
