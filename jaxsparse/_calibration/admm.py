"""ADMM: weights and a mask that approach each other, for any pattern.

The error of a layer, `(w - v).T @ h @ (w - v)`, is minimised over weights `v` that obey
a pattern, by the alternating direction method of multipliers (Boyd et al. 2011). Two
copies of the weights, one that lowers the error and one that obeys the pattern, are
pulled together by a penalty and by multipliers, so that the mask is found from weights
that compensate already. Boža, "Fast and Effective Weight Update for Pruned Large
Language Models" (2024, arXiv:2401.02938), prunes layers in this way; the penalty grows
as in ALPS (Meng et al. 2024, arXiv:2406.07831): by 1.3, 1.2 or 1.1 every three steps,
the more the mask still changes, until it changes no more. One eigendecomposition of `h`
serves all penalties. Inputs are scaled to a mean square of one first.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float32

from jaxsparse._calibration.precondition import precondition


_Matrix = Float32[Array, "input output"]
_Mask = Bool[Array, "input output"]

#: Returns the mask of a pattern that keeps the largest sum of squares.
Project = Callable[[_Matrix], _Mask]

#: The first penalty; the diagonal of the second moment is one.
_PENALTY = 0.1

#: The steps between two changes of the penalty.
_STEPS = 3

#: By what the penalty grows if more than a share of the kept weights has changed.
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))


class _State(NamedTuple):
    """The state between two changes of the penalty.

    Attributes:
      sparse: the weights that obey the pattern.
      mask: the mask that they obey.
      multiplier: the multipliers, not divided by the penalty.
      penalty: the penalty of the next steps.
      steps: the number of steps so far.
      changed: whether the mask changed in the last steps.
    """

    sparse: _Matrix
    mask: _Mask
    multiplier: _Matrix
    penalty: Array
    steps: Array
    changed: Array


def admm(
    weight: _Matrix,
    moment: Float32[Array, "input input"],
    project: Project,
    steps: ArrayLike,
) -> tuple[_Matrix, _Mask]:
    """Prunes one matrix.

    Args:
      weight: the weights.
      moment: the second moment of the inputs.
      project: returns the best mask of weights by their squares.
      steps: the most steps, in multiples of three.

    Returns:
      Weights near the least squares under the mask, with exact zeros outside it, and
      the mask.
    """
    scaled = precondition(moment)
    dense = scaled.scaled(weight)
    values, vectors = jnp.linalg.eigh(scaled.moment, symmetrize_input=False)
    values = jnp.maximum(values, 0)  # rounding makes some of them negative
    target = _matmul(scaled.moment, dense)

    def change_penalty(state: _State) -> _State:
        penalty = state.penalty
        inverse = _matmul(vectors / (values + penalty)[None], vectors.T)

        def step(_, carry):
            sparse, _, multiplier = carry
            free = _matmul(inverse, target - multiplier + penalty * sparse)
            pulled = free + multiplier / penalty
            mask = project(pulled)
            sparse = jnp.where(mask, pulled, 0)
            return sparse, mask, multiplier + penalty * (free - sparse)

        carry = state.sparse, state.mask, state.multiplier
        sparse, mask, multiplier = lax.fori_loop(0, _STEPS, step, carry)
        changes = jnp.sum(mask != state.mask, dtype=jnp.int32)
        growth = _growth(changes, jnp.sum(mask, dtype=jnp.int32))
        return _State(
            sparse,
            mask,
            multiplier,
            penalty * growth,
            state.steps + _STEPS,
            changes > 0,
        )

    mask = project(dense)
    state = _State(
        jnp.where(mask, dense, 0),
        mask,
        jnp.zeros_like(dense),
        jnp.float32(_PENALTY),
        jnp.zeros((), jnp.int32),
        jnp.ones((), jnp.bool_),
    )
    continues = lambda state: (state.steps < steps) & state.changed
    state = lax.while_loop(continues, change_penalty, state)
    sparse = fit_by_gradients(dense, state.sparse, state.mask, scaled.moment)
    return scaled.unscaled(sparse, state.mask), state.mask


def _growth(changes: Array, kept: Array) -> Array:
    """Returns the factor by which the penalty grows."""
    share = changes.astype(jnp.float32) / jnp.maximum(kept, 1).astype(jnp.float32)
    growth = jnp.float32(1)
    for least, factor in reversed(_GROWTH):
        growth = jnp.where(share > least, jnp.float32(factor), growth)
    return growth


def fit_to_mask(
    weight: _Matrix,
    start: _Matrix,
    mask: _Mask,
    moment: Float32[Array, "input input"],
) -> _Matrix:
    """As `fit_by_gradients`, for the moment of inputs with any mean squares."""
    scaled = precondition(moment)
    before, begin = scaled.scaled(weight), scaled.scaled(start)
    return scaled.unscaled(fit_by_gradients(before, begin, mask, scaled.moment), mask)


def fit_by_gradients(
    weight: _Matrix,
    start: _Matrix,
    mask: _Mask,
    moment: Float32[Array, "input input"],
    steps: int = 20,
) -> _Matrix:
    """Approaches the least squares under a mask by conjugate gradients.

    Args:
      weight: the weights before pruning.
      start: the weights to begin with.
      mask: the mask.
      moment: the second moment of inputs whose mean squares are one.
      steps: the number of steps, none of which increases the error.

    Returns:
      The weights, with exact zeros outside the mask.
    """
    masked = lambda x: jnp.where(mask, x, 0)
    dot = lambda a, b: jnp.sum(a * b, 0, keepdims=True)
    ratio = lambda a, b: jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)

    def step(_, carry):
        new, residual, direction = carry
        image = masked(_matmul(moment, direction))
        square = dot(residual, residual)
        length = ratio(square, dot(direction, image))
        new, residual = new + length * direction, residual - length * image
        direction = residual + ratio(dot(residual, residual), square) * direction
        return new, residual, direction

    new = masked(start)
    residual = masked(_matmul(moment, weight - new))
    return lax.fori_loop(0, steps, step, (new, residual, residual))[0]


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
