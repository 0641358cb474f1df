"""Permutations of input channels with which n:m pruning keeps more.

Channels are taken out of all groups at once, one of each, and put back by the
assignment of most value; then the next channel of each group, again and again. Zhang et
al., "Plug-and-Play: An Efficient Post-Training Pruning Method for Large Language
Models" (2024, ICLR; RIA), assign once for each position of a deal by size, which is the
start here. Pool and Yu, "Channel Permutations for N:M Sparsity" (2021, NeurIPS), have
the problem and the measure of efficacy.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float32

from jaxsparse._channels.assignment import assign
from jaxsparse._channels.slot_values import slot_values


#: A search ends when a sweep over all slots adds less than this share of its gain.
TOLERANCE = 0.003
#: Problems of at most this many channels are cheap, and are annealed for so many slots.
_ANNEALED_CHANNELS, _ANNEALED_SLOTS = 512, 400
#: The noise at the start of annealing, in standard deviations of the values.
_NOISE = 1 / 8


class FoundPermutation(NamedTuple):
    """Permutations of alike problems, and the sums of the scores that are kept.

    Attributes:
      permutations: int32, of shape `[problem, channel]`: new channel `i` is old channel
        `permutations[:, i]`.
      before: the sum with the channels as they were.
      after: the sum with the channels permuted.
      rows: the sum if each row could be pruned freely at the same density.
      total: the sum of all scores.
    """

    permutations: np.ndarray
    before: float
    after: float
    rows: float
    total: float


def search_permutation(
    scores: Float32[Array, "problem channel row"], n: int, m: int, key: jax.Array
) -> FoundPermutation:
    """Searches the permutations with which the best n:m mask keeps most.

    It runs on the host, and the sums over rows on the device of the scores.

    Args:
      scores: the scores of the weights of each channel. Groups lie along channels.
      n: how many of each group are kept.
      m: the size of a group, which divides the number of channels.
      key: the random key; the result is the same for the same key.

    Returns:
      The permutations. No problem keeps less than before.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    known = np.asarray(scores)
    groups = _deal(known.sum(2, dtype=np.float64), m)
    if known.shape[1] <= _ANNEALED_CHANNELS:
        groups = _anneal(scores, groups, n, rng)
    groups = _climb(scores, groups, n, rng)
    found = groups.reshape(known.shape[:2])
    plain = np.broadcast_to(np.arange(known.shape[1], dtype=np.int32), found.shape)
    before, after = _kept(known, plain, n, m), _kept(known, found, n, m)
    better = after > before
    return FoundPermutation(
        np.where(better[:, None], found, plain),
        float(before.sum()),
        float(np.where(better, after, before).sum()),
        float(_largest_sum(known, known.shape[1] * n // m, 1).sum()),
        float(known.sum(dtype=np.float64)),
    )


def _deal(sizes: np.ndarray, m: int) -> np.ndarray:
    """Returns groups `[problem, group, m]` that get channels in turn, by their size."""
    order = np.argsort(-sizes, axis=1, kind="stable").astype(np.int32)
    return order.reshape(len(sizes), m, -1).swapaxes(1, 2)


def _climb(
    scores: Array, groups: np.ndarray, n: int, rng: np.random.Generator
) -> np.ndarray:
    """Reassigns slot after slot until a sweep gains little."""
    total = 0.0
    while True:
        gained = 0.0
        for slot in _slots(groups, rng):
            values, channels = _take_out(scores, groups, slot, n)
            columns = assign(values)
            gain = _gain(values, columns)
            columns = np.where((gain > 0)[:, None], columns, np.arange(len(columns.T)))
            groups = _put_back(groups, slot, channels, columns)
            gained += float(gain.clip(0).sum())
        total += gained
        if gained <= TOLERANCE * total:
            return groups


def _anneal(
    scores: Array, groups: np.ndarray, n: int, rng: np.random.Generator
) -> np.ndarray:
    """Reassigns slots by values with random noise, which falls to zero."""
    sweeps = -(-_ANNEALED_SLOTS // groups.shape[2])
    for noise in _NOISE * np.arange(sweeps, 0, -1, dtype=np.float32) / sweeps:
        for slot in _slots(groups, rng):
            values, channels = _take_out(scores, groups, slot, n)
            drawn = rng.standard_exponential(values.shape, np.float32)
            deviation = np.std(values, axis=(1, 2), keepdims=True)
            columns = assign(values, noise * deviation * drawn)
            groups = _put_back(groups, slot, channels, columns)
    return groups


def _slots(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns a random order of the positions of each group: `[m, problem, group]`."""
    positions = np.broadcast_to(np.arange(groups.shape[2]), groups.shape)
    return np.moveaxis(rng.permuted(positions, axis=2), 2, 0)


def _take_out(
    scores: Array, groups: np.ndarray, slot: np.ndarray, n: int
) -> tuple[Array, np.ndarray]:
    """Returns the values of groups and channels, and the channels taken out."""
    in_slot = np.arange(groups.shape[2]) == slot[:, :, None]
    others = groups[~in_slot].reshape(*groups.shape[:2], -1)
    channels = groups[in_slot].reshape(groups.shape[:2])
    return slot_values(scores, others, channels, n), channels


def _put_back(
    groups: np.ndarray, slot: np.ndarray, channels: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Returns the groups with the channels that each was assigned."""
    assigned = np.take_along_axis(channels, columns, 1)
    in_slot = np.arange(groups.shape[2]) == slot[:, :, None]
    return np.where(in_slot, assigned[:, :, None], groups)


def _gain(values: Array, columns: np.ndarray) -> np.ndarray:
    """Returns how much more an assignment is worth than putting all channels back."""
    table = np.asarray(values)
    assigned = np.take_along_axis(table, columns[:, :, None], 2)[:, :, 0]
    back = np.diagonal(table, axis1=1, axis2=2)
    return (assigned - back).sum(1, dtype=np.float64)


def _kept(scores: np.ndarray, order: np.ndarray, n: int, m: int) -> np.ndarray:
    """Returns the sum of the scores that the best mask keeps, for each problem."""
    permuted = np.take_along_axis(scores, order[:, :, None], 1)
    grouped = permuted.reshape(len(scores), -1, m, scores.shape[2])
    return _largest_sum(grouped, n, 2).reshape(len(scores), -1).sum(1)


def _largest_sum(scores: np.ndarray, count: int, axis: int) -> np.ndarray:
    """Returns the sum of the largest scores along an axis, in float64."""
    start = scores.shape[axis] - count
    part = np.partition(scores, start, axis) if start else scores
    largest = np.take(part, np.arange(start, scores.shape[axis]), axis)
    return largest.sum(axis, dtype=np.float64)
