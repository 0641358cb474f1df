"""What groups keep for every channel that could fill one of their positions.

Take one channel out of a group of `m`. Of each row let `t` be the `n`-th largest of the
other `m - 1` scores. With a channel of scores `v` in the free position, the group keeps
`sum(max(t, v))` and what does not depend on `v`: the `n - 1` largest of the others.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, Int32


#: Rows that one step adds: on a CPU the sums are then read and written 16 times less.
_ROWS = 16


@partial(jax.jit, static_argnames="n")
def position_values(
    scores: Float32[Array, "problem channel row"],
    others: Int32[Array, "problem group other"],
    channels: Int32[Array, "problem group"],
    n: int,
) -> Float32[Array, "problem group group"]:
    """Returns the sum over rows of `max(t, v)`, for each group and each channel.

    Args:
      scores: the scores.
      others: the channels of each group but for the free position.
      channels: the channels that were in the free positions.
      n: how many of `m` are kept.

    Returns:
      For each problem the value of each group, along rows, with each of `channels`,
      along columns.
    """
    return jax.vmap(partial(_values, n=n))(scores, others, channels)


def _values(
    scores: Float32[Array, "channel row"],
    others: Int32[Array, "group other"],
    channels: Int32[Array, " group"],
    n: int,
) -> Float32[Array, "group group"]:
    threshold = _nth_largest([scores[i] for i in others.T], n)
    rows = -(-scores.shape[1] // _ROWS) * _ROWS
    in_steps = lambda x: jnp.pad(x, ((0, 0), (0, rows - x.shape[1]))).T.reshape(
        -1, _ROWS, len(channels)
    )  # zeros add nothing

    def add_rows(values, step):
        t, v = step
        return values + sum(
            jnp.maximum(t[i][:, None], v[i][None]) for i in range(_ROWS)
        ), None

    start = jnp.zeros((len(channels), len(channels)), jnp.float32)
    steps = in_steps(threshold), in_steps(scores[channels])
    return lax.scan(add_rows, start, steps)[0]


def _nth_largest(arrays: list[Array], n: int) -> Array:
    """Returns the `n`-th largest of arrays, element by element."""
    largest: list[Array] = []
    for x in arrays:
        for i, other in enumerate(largest):
            largest[i], x = jnp.maximum(other, x), jnp.minimum(other, x)
        if len(largest) < n:
            largest.append(x)
    return largest[-1]
