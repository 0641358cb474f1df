"""Inputs divided by their scales, so that all of them have a mean square of one.

The weights are multiplied by the scales in turn, so outputs are the same. In these
coordinates a weight counts as much as its input does, and the second moment, whose
diagonal is one, is better conditioned.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32


#: The mean square that inputs count as that were always zero, as a fraction of the mean
#: of all others: too little to compete with them, enough to rank their weights.
_DEAD = 1e-12


class Preconditioned(NamedTuple):
    """A second moment of scaled inputs.

    Attributes:
      moment: the second moment, whose diagonal is one.
      scale: what each input was divided by.
    """

    moment: Float32[Array, "input input"]
    scale: Float32[Array, " input"]

    def scaled(
        self, weight: Float32[Array, "input output"]
    ) -> Float32[Array, "input output"]:
        """Returns the weights of the scaled inputs."""
        return weight * self.scale[:, None]

    def unscaled(
        self,
        weight: Float32[Array, "input output"],
        mask: Bool[Array, "input output"],
    ) -> Float32[Array, "input output"]:
        """Returns the weights of the inputs, with exact zeros outside the mask."""
        return jnp.where(mask, weight / self.scale[:, None], 0)


def precondition(moment: Float32[Array, "input input"]) -> Preconditioned:
    """Returns the second moment of the inputs divided by their root mean squares.

    Args:
      moment: the second moment. Inputs that were always zero count as barely not so,
        and as correlated with no other input.
    """
    square = jnp.diagonal(moment)
    live = square > 0
    mean = jnp.sum(square) / jnp.maximum(jnp.sum(live), 1).astype(jnp.float32)
    scale = jnp.sqrt(jnp.where(live, square, _DEAD * jnp.where(mean > 0, mean, 1)))
    scaled = moment / scale[:, None] / scale[None, :]
    is_diagonal = jnp.eye(len(moment), dtype=jnp.bool_)
    return Preconditioned(jnp.where(is_diagonal, 1, scaled), scale)
