"""Channels taken out one by one, each the one that the others replace best.

While `h` is the second moment of the inputs that are left, and the weights `w` of all
others may change, the outputs of a layer lose `norm(w[i])**2 / inv(h)[i, i]` without
input `i`: Hassibi and Stork, "Optimal Brain Surgeon" (1992, NeurIPS), for rows of
weights. Kurtic et al., "ZipLM" (2023, arXiv:2302.04089), take out whole channels so. A
channel that another one repeats costs nothing, but only the first of the two.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float32, Int


class Consumer(NamedTuple):
    """A layer that takes channels in.

    Attributes:
      inverse: the inverse of the second moment of its inputs.
      weight: its weights, relative to its outputs.
      inputs: which inputs each channel is.
    """

    inverse: Float32[Array, "input input"]
    weight: Float32[Array, "input output"]
    inputs: Int[Array, "channel part"]


@partial(jax.jit, static_argnames=("sets", "count"))
def survivors(
    consumers: Sequence[Consumer], *, sets: int, count: int
) -> Bool[Array, " channel"]:
    """Returns which channels are left.

    Args:
      consumers: the layers that take the same channels in.
      sets: into how many sets of one size the channels are divided.
      count: how many go from each set.
    """
    channels = len(consumers[0].inputs)
    number = jnp.arange(channels) // (channels // sets)

    def step(k, carry):
        consumers, alive = carry
        lost = sum(map(_lost, consumers))
        lost = jnp.where(alive & (number == k % sets), lost, jnp.inf)
        channel = jnp.argmin(lost)
        return tuple(_without(x, channel) for x in consumers), alive.at[channel].set(False)

    alive = jnp.ones(channels, jnp.bool_)
    return lax.fori_loop(0, sets * count, step, (tuple(consumers), alive))[1]


def _lost(consumer: Consumer) -> Float32[Array, " channel"]:
    """Returns what outputs lose without each channel, its inputs one by one."""
    diagonal = jnp.diagonal(consumer.inverse)
    square = jnp.sum(jnp.square(consumer.weight), axis=1)
    lost = jnp.where(diagonal > 0, square / diagonal, 0)
    return lost[consumer.inputs].sum(1)


def _without(consumer: Consumer, channel: Int[Array, ""]) -> Consumer:
    """Returns a consumer whose other weights make up for those of a channel."""

    def eliminate(part, state):
        inverse, weight = state
        i = consumer.inputs[channel, part]
        row = inverse[i] / jnp.where(inverse[i, i] > 0, inverse[i, i], 1)
        weight -= row[:, None] * weight[i]
        inverse -= row[:, None] * inverse[i]
        # Exact zeros, where rounding would leave others.
        return inverse.at[i].set(0).at[:, i].set(0), weight.at[i].set(0)

    parts = consumer.inputs.shape[1]
    state = lax.fori_loop(0, parts, eliminate, (consumer.inverse, consumer.weight))
    return consumer._replace(inverse=state[0], weight=state[1])
