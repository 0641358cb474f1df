"""Sweeps as defined, by brute force in float64: every choice is solved and compared."""

from itertools import combinations

import numpy as np


def error(weight, pruned, moment):
    """Returns `(w - v).T @ h @ (w - v)`, summed over outputs, in float64."""
    lost = np.asarray(weight, np.float64) - np.asarray(pruned, np.float64)
    return np.sum(lost * (moment @ lost))


def sweep_groups(weight, start, moment, n, m, sweeps):
    """Gives each group in turn, for each output, the best of all its choices."""
    weight, new = np.asarray(weight, np.float64), np.array(start, np.float64)
    for _ in range(sweeps):
        for first in range(0, len(weight), m):
            for output in range(weight.shape[1]):
                column = new[:, output]
                column[first : first + m] = 0
                column[:] = min(
                    _solutions(weight[:, output], column, moment, first, n, m),
                    key=lambda v: error(weight[:, output], v, moment),
                )
    return new


def _solutions(weight, column, moment, first, n, m):
    """Returns the best column for each choice of `n` inputs of a group."""
    solutions = []
    for choice in combinations(range(first, first + m), n):
        solution, choice = column.copy(), list(choice)
        target = (moment @ (weight - column))[choice]
        solution[choice] = np.linalg.solve(moment[np.ix_(choice, choice)], target)
        solutions.append(solution)
    return solutions


def swap_pairs(weight, start, mask, moment, sweeps):
    """Moves each kept weight in turn to the input where a single weight helps most."""
    weight, new = np.asarray(weight, np.float64), np.array(start, np.float64)
    mask = np.array(mask)
    for _ in range(sweeps):
        for output in range(weight.shape[1]):
            for i in np.flatnonzero(mask[:, output]):
                mask[i, output], new[i, output] = False, 0
                columns = _with_one_more(
                    weight[:, output], new[:, output], mask[:, output], moment
                )
                best = min(
                    columns, key=lambda v: error(weight[:, output], v[0], moment)
                )
                new[:, output] = best[0]
                mask[best[1], output] = True
    return new, mask


def _with_one_more(weight, column, mask, moment):
    """Returns all columns with one more weight, the best there, and its input."""
    columns = []
    for j in np.flatnonzero(~mask):
        candidate = column.copy()
        candidate[j] = moment[j] @ (weight - column) / moment[j, j]
        columns.append((candidate, j))
    return columns
