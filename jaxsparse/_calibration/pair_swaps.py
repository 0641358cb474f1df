"""Sweeps of swaps: each kept weight in turn moves to the best pruned input, or stays.

For patterns that fix how many weights an output keeps, but not which. The error of an
output, `(w - v) @ h @ (w - v)`, is minimised by coordinate descent: with weight `i` at
zero and all others as they are, the best single input `j`, of those that are pruned and
`i` itself, lowers the error by `g[j]**2 / h[j, j]`, where `g = h @ (w - v)`. So the
change of the error is exact, and the error never rises.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float32

from jaxsparse._calibration.precondition import precondition


#: The outputs that are computed at once on a CPU: as many as its caches hold.
_OUTPUTS = 32

_Matrix = Float32[Array, "input output"]
_Mask = Bool[Array, "input output"]


def swap_pairs(
    weight: _Matrix,
    start: _Matrix,
    mask: _Mask,
    moment: Float32[Array, "input input"],
    sweeps: ArrayLike,
) -> tuple[_Matrix, _Mask]:
    """Improves masks and weights by swaps within each output.

    Args:
      weight: `w`, the weights before pruning.
      start: the weights to improve, zero outside the mask.
      mask: the mask to improve; every output keeps as many weights.
      moment: the second moment of the inputs.
      sweeps: how often each input is visited.

    Returns:
      The weights, with exact zeros where they are pruned, and the mask. Of inputs that
      were always zero the kept weights are those of `weight`.
    """
    scaled = precondition(moment)
    _, outputs = weight.shape
    dense = scaled.scaled(weight).T
    first = jnp.where(mask, scaled.scaled(start), 0).T
    visits = jnp.max(jnp.sum(mask, 0, dtype=jnp.int32))
    swap = lambda w, v, kept: _swap_output(scaled.moment, w, v, kept, visits, sweeps)

    def in_tiles(*rows: Array) -> tuple[Array, Array]:
        # Outputs that keep nothing fill the last tile: they have nothing to swap.
        padded = [jnp.pad(x, ((0, -outputs % _OUTPUTS), (0, 0))) for x in rows]
        tiles = [x.reshape(-1, _OUTPUTS, x.shape[1]) for x in padded]
        new, kept = lax.map(lambda tile: jax.vmap(swap)(*tile), tuple(tiles))
        join = lambda x: x.reshape(-1, x.shape[-1])[:outputs]
        return join(new), join(kept)

    new, kept = lax.platform_dependent(
        dense, first, mask.T, cpu=in_tiles, default=jax.vmap(swap)
    )
    return scaled.unscaled(new.T, kept.T), kept.T


def _swap_output(
    moment: Float32[Array, "input input"],
    weight: Float32[Array, " input"],
    start: Float32[Array, " input"],
    mask: Bool[Array, " input"],
    visits: Array,
    sweeps: ArrayLike,
) -> tuple[Float32[Array, " input"], Bool[Array, " input"]]:
    """Swaps weights of one output; the diagonal of the second moment is one."""
    count = jnp.sum(mask, dtype=jnp.int32)
    indices = jnp.arange(len(weight), dtype=jnp.int32)

    def visit(number, carry):
        new, mask, gradient, order = carry
        i = order[number]
        value, is_kept = new[i], number < count
        without = gradient + value * moment[i]
        gain = jnp.where(mask & (indices != i), -1, without * without)
        # Two reductions that vectorise, where `argmax` does not.
        target = jnp.min(jnp.where(gain == jnp.max(gain), indices, len(weight) - 1))
        target = jnp.where(is_kept, target, i)
        value = jnp.where(is_kept, without[target], value)
        gradient = jnp.where(is_kept, without - value * moment[target], gradient)
        new = jnp.where(indices == target, value, jnp.where(indices == i, 0, new))
        mask = jnp.where(is_kept, (mask & (indices != i)) | (indices == target), mask)
        return new, mask, gradient, order

    def sweep(_, carry):
        new, mask = carry
        # Computed again in each sweep, so that rounding does not add up.
        difference = weight - new
        gradient = jnp.matmul(moment, difference, precision=lax.Precision.HIGHEST)
        order = jnp.argsort(~mask, stable=True)
        new, mask, *_ = lax.fori_loop(0, visits, visit, (new, mask, gradient, order))
        return new, mask

    return lax.fori_loop(0, sweeps, sweep, (start, mask))
