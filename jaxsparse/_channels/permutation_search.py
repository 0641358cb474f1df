"""Permutations of input channels with which n:m pruning keeps more.

Channels are taken out of all groups at once, one of each, and put back by the
assignment of most value; then the next one of each group, again and again. Zhang et
al., "Plug-and-Play: An Efficient Post-Training Pruning Method for Large Language
Models" (2024, ICLR; RIA), assign once for each position of a deal by size, which is the
start here. Pool and Yu, "Channel Permutations for N:M Sparsity" (2021, NeurIPS), have
the problem and the measure of efficacy.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32

from jaxsparse._channels.assignment import assign
from jaxsparse._channels.position_values import position_values


#: A search ends when a sweep over all positions adds less than this share of its gain.
TOLERANCE = 0.001
#: Problems of at most this many channels are cheap, and annealed for so many steps.
_ANNEALED_CHANNELS, _ANNEALED_STEPS = 512, 400
#: The noise at the start of annealing, in standard deviations of the values.
_NOISE = 1 / 8


def search_permutation(
    scores: Float32[Array, "problem channel row"], n: int, m: int, key: jax.Array
) -> Int32[np.ndarray, "problem channel"]:
    """Searches the permutations with which the best n:m mask keeps most.

    It runs on the host, and the sums over rows on the device of the scores.

    Args:
      scores: the scores of the weights of each channel. Groups lie along channels.
      n: how many of each group are kept.
      m: the size of a group, which divides the number of channels.
      key: the random key; the result is the same for the same key.

    Returns:
      The channels in their new order. They may keep less than as they were, if that
      order was the result of a search.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    groups = _deal(np.asarray(jnp.sum(scores, axis=2)), m)
    if scores.shape[1] <= _ANNEALED_CHANNELS:
        groups = _anneal(scores, groups, n, rng)
    return _climb(scores, groups, n, rng).reshape(scores.shape[:2])


def _deal(sizes: np.ndarray, m: int) -> np.ndarray:
    """Returns groups `[problem, group, m]` that get channels in turn, by their size."""
    order = np.argsort(-sizes, axis=1, kind="stable").astype(np.int32)
    return order.reshape(len(sizes), m, -1).swapaxes(1, 2)


def _climb(
    scores: Array, groups: np.ndarray, n: int, rng: np.random.Generator
) -> np.ndarray:
    """Reassigns position after position until a sweep gains little."""
    total = 0.0
    while True:
        gained = 0.0
        for position in _positions(groups, rng):
            values, channels = _take_out(scores, groups, position, n)
            columns = assign(values)
            gain = _gain(values, columns)
            columns = np.where((gain > 0)[:, None], columns, np.arange(len(columns.T)))
            groups = _put_back(groups, position, channels, columns)
            gained += float(gain.sum())
        total += gained
        if gained <= TOLERANCE * total:
            return groups


def _anneal(
    scores: Array, groups: np.ndarray, n: int, rng: np.random.Generator
) -> np.ndarray:
    """Reassigns positions by values with random noise, which falls to zero."""
    sweeps = -(-_ANNEALED_STEPS // groups.shape[2])
    for noise in _NOISE * np.arange(sweeps, 0, -1, dtype=np.float32) / sweeps:
        for position in _positions(groups, rng):
            values, channels = _take_out(scores, groups, position, n)
            drawn = rng.standard_exponential(values.shape, np.float32)
            deviation = np.asarray(values).std((1, 2), keepdims=True)
            columns = assign(values, noise * deviation * drawn)
            groups = _put_back(groups, position, channels, columns)
    return groups


def _positions(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns a random order of the positions of each group: `[m, problem, group]`."""
    positions = np.broadcast_to(np.arange(groups.shape[2]), groups.shape)
    return np.moveaxis(rng.permuted(positions, axis=2), 2, 0)


def _take_out(
    scores: Array, groups: np.ndarray, position: np.ndarray, n: int
) -> tuple[Array, np.ndarray]:
    """Returns the values of groups and channels, and the channels taken out."""
    is_taken = np.arange(groups.shape[2]) == position[:, :, None]
    others = groups[~is_taken].reshape(*groups.shape[:2], -1)
    channels = groups[is_taken].reshape(groups.shape[:2])
    return position_values(scores, others, channels, n), channels


def _put_back(
    groups: np.ndarray, position: np.ndarray, channels: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Returns the groups with the channels that each was assigned."""
    assigned = np.take_along_axis(channels, columns, 1)
    is_taken = np.arange(groups.shape[2]) == position[:, :, None]
    return np.where(is_taken, assigned[:, :, None], groups)


def _gain(values: Array, columns: np.ndarray) -> np.ndarray:
    """Returns how much more an assignment is worth than putting all channels back.

    It is zero for one that is worth less, or no more than by rounding.
    """
    of_rows = lambda x: np.asarray(x, np.float64).sum(1)
    assigned = of_rows(jnp.take_along_axis(values, columns[:, :, None], 2)[:, :, 0])
    back = of_rows(jnp.diagonal(values, axis1=1, axis2=2))
    rounding = np.finfo(np.float32).eps * np.asarray(jnp.abs(values).max((1, 2)))
    return np.where(assigned - back > rounding, assigned - back, 0.0)
