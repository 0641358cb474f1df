"""One choice for each of several items, of least total error within a total cost.

The multiple-choice knapsack problem. Item after item, the totals that no other totals
beat in both cost and error are kept. Leaves of a network have few different sizes, so
there are few different totals and the result is exact.
"""

from collections.abc import Sequence

import numpy as np


#: The most totals that are kept. Of more, those of almost the same cost are merged.
MAX_TOTALS = 1 << 14


def least_error(
    costs: Sequence[Sequence[int | float]],
    errors: Sequence[Sequence[int | float]],
    budget: int | float,
) -> list[int]:
    """Returns the index of the choice of each item, of least total error.

    Args:
      costs: the cost of each choice of each item, not negative.
      errors: the error of each choice of each item.
      budget: the largest total cost, not below the sum of the least costs.

    Returns:
      The choices. They are the best ones, unless more than `MAX_TOTALS` totals are left
      at some item; then the total error may be a little above the least, and the cost
      is within the budget all the same.

    >>> least_error([[4, 2], [8, 4], [8, 4]], [[0, 5], [0, 3], [0, 9]], 16)
    [0, 1, 0]
    """
    least_costs = [min(choices) for choices in costs]
    still_needed = np.cumsum([0.0, *reversed(least_costs)])[::-1][1:]
    totals, total_errors = np.zeros(1), np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    slack = 1e-9 * budget  # sums of fractions round
    for item_costs, item_errors, needed in zip(
        costs, errors, still_needed, strict=True
    ):
        sums = np.add.outer(totals, np.asarray(item_costs, float)).ravel()
        error_sums = np.add.outer(total_errors, np.asarray(item_errors, float)).ravel()
        kept = _unbeaten(sums, error_sums, budget - needed + slack)
        if len(kept) > MAX_TOTALS:
            kept = kept[_last_of_bins(sums[kept], budget)]
        totals, total_errors = sums[kept], error_sums[kept]
        steps.append((kept // len(item_costs), kept % len(item_costs)))
    index, choices = len(totals) - 1, []
    for parents, chosen in reversed(steps):
        choices.append(int(chosen[index]))
        index = parents[index]
    return choices[::-1]


def _unbeaten(costs: np.ndarray, errors: np.ndarray, most: float) -> np.ndarray:
    """Returns indices by rising cost and falling error, of costs up to `most`."""
    order = np.lexsort((errors, costs))
    order = order[costs[order] <= most]
    before = np.minimum.accumulate(np.append(np.inf, errors[order]))[:-1]
    return order[errors[order] < before]


def _last_of_bins(costs: np.ndarray, budget: float) -> np.ndarray:
    """Returns the index of the highest of those rising costs that share a bin."""
    bins = np.floor(costs * (MAX_TOTALS / budget))
    return np.flatnonzero(np.append(bins[1:] != bins[:-1], True))
