"""The weights that, with a given mask, come closest to a layer's outputs.

Each output has normal equations of its own, over the inputs that its mask keeps. What
is solved for is the change of those weights that makes up for the pruned ones.
"""

import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Bool, Float32


#: Bytes of the equations that are solved at once.
_AT_ONCE = 2**28

#: The first damping, as a fraction of the mean of the diagonal.
_DAMPING = 1e-6


def masked_least_squares(
    weight: Float32[Array, "input output"],
    mask: Bool[Array, "input output"],
    moment: Float32[Array, "input input"],
) -> Float32[Array, "input output"]:
    """Minimises `(w - v).T @ moment @ (w - v)` over `v` that are zero outside a mask.

    Args:
      weight: `w`, the weights of a layer.
      mask: True where `v` may differ from zero.
      moment: the second moment of the layer's inputs. Weights of inputs that were
        always zero stay as they are where they are kept.

    Returns:
      `v`, with exact zeros outside the mask. A second moment that is singular, or
      nearly, leaves several such `v`: it is one close to `w`.
    """
    diagonal = jnp.diagonal(moment)
    dead = diagonal == 0
    scale = jnp.sum(diagonal) / jnp.maximum(jnp.sum(~dead), 1).astype(jnp.float32)

    def one(column):
        weight, mask = column
        free = mask & ~dead
        both = free[:, None] & free[None, :]
        equations = jnp.where(both, moment, 0) + jnp.diag(jnp.where(free, 0, scale))

        def attempt(damping):
            lifted = equations + damping * scale * jnp.eye(len(dead), dtype=jnp.float32)
            return jnp.linalg.cholesky(lifted, symmetrize_input=False)

        failed = lambda tried: ~jnp.isfinite(tried[1]).all() & (tried[0] < 1)
        again = lambda tried: (10 * tried[0], attempt(10 * tried[0]))
        first = jnp.asarray(_DAMPING, jnp.float32)
        _, lower = lax.while_loop(failed, again, (first, attempt(first)))

        kept = jnp.where(mask, weight, 0)
        for _ in range(3):  # again for what rounding and damping left
            slope = jnp.matmul(moment, weight - kept, precision=lax.Precision.HIGHEST)
            change = cho_solve((lower, True), jnp.where(free, slope, 0))
            kept += jnp.where(free, change, 0)
        return kept

    at_once = max(1, _AT_ONCE // moment.nbytes)
    columns = (weight.T, mask.T)
    return lax.map(one, columns, batch_size=min(at_once, len(columns[0]))).T
