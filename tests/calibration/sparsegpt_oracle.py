"""SparseGPT as it is defined, input by input, in float64: no factor and no blocks.

Of the inputs that are left, the inverse of their second moment says what to do: pruning
the first of them costs `w**2 / inverse[0, 0]`, and changes the others by
`-w / inverse[0, 0] * inverse[:, 0]` (Frantar and Alistarh 2023, equation 3).
"""

import numpy as np


def damped(moment, damping):
    """The second moment, lifted; inputs that are always zero stand alone."""
    moment = np.asarray(moment, np.float64)
    dead = np.diag(moment) == 0
    mean = np.trace(moment) / (~dead).sum()
    return moment + np.diag(damping * mean + np.where(dead, mean, 0)), dead


def sparsegpt(weight, moment, choose, at_once, damping=0.01):
    """Prunes `(inputs, outputs)`; `choose(costs, first)` gives the mask of some."""
    weight = np.array(weight, np.float64)
    moment, dead = damped(moment, damping)
    inputs = len(weight)
    mask = np.ones(weight.shape, bool)
    inverses = [np.linalg.inv(moment[i:, i:]) for i in range(inputs)]
    for i in range(inputs):
        if i % at_once == 0:
            group = range(i, min(i + at_once, inputs))
            costs = np.stack(
                [weight[j] ** 2 / inverses[j][0, 0] * (not dead[j]) for j in group]
            )
            mask[i : i + at_once] = choose(costs, i)
        column = inverses[i][:, 0] / inverses[i][0, 0]
        pruned = np.where(mask[i], 0, weight[i])
        kept = weight[i] - pruned
        weight[i:] -= np.outer(column, pruned)
        weight[i] = kept
    return weight, mask


def keep_highest(kept):
    """Chooses so many of the inputs of every output, the first of equal ones."""

    def choose(costs, _):
        order = np.argsort(-costs, axis=0, kind="stable")
        return np.argsort(order, axis=0, kind="stable") < kept

    return choose


def correlated(rng, tokens, inputs):
    """Inputs of which each is a mixture, of very different sizes."""
    mixture = rng.normal(size=(inputs, inputs)) * rng.exponential(size=inputs)
    return (rng.normal(size=(tokens, inputs)) @ mixture).astype(np.float32)
