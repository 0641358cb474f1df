"""SparseGPT as defined, input by input, in float64, without a factor or blocks.

With `inverse` the inverse second moment of the remaining inputs, pruning the first of
them costs `w**2 / inverse[0, 0]`, and changes the others by
`-w / inverse[0, 0] * inverse[:, 0]` (Frantar and Alistarh 2023, equation 3).
"""

import numpy as np


def shrunk(moment, shrinkage=0.1):
    """Returns the second moment, part of the way to its diagonal."""
    moment = np.asarray(moment, np.float64)
    return (1 - shrinkage) * moment + shrinkage * np.diag(np.diag(moment))


def damped(moment, damping):
    """Returns the damped second moment, and which inputs are always zero."""
    moment = np.asarray(moment, np.float64)
    dead = np.diag(moment) == 0
    mean = np.trace(moment) / (~dead).sum()
    return moment + np.diag(damping * mean + np.where(dead, mean, 0)), dead


def sparsegpt(weight, moment, choose, at_once, damping=0.01):
    """Prunes `[input, output]`; `choose(costs, first)` returns a mask of inputs."""
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
    """Keeps the `kept` inputs of highest cost for every output, the first of ties."""

    def choose(costs, _):
        order = np.argsort(-costs, axis=0, kind="stable")
        return np.argsort(order, axis=0, kind="stable") < kept

    return choose


def correlated(rng, tokens, inputs):
    """Returns correlated inputs, of very different magnitudes."""
    mixture = rng.normal(size=(inputs, inputs)) * rng.exponential(size=inputs)
    return (rng.normal(size=(tokens, inputs)) @ mixture).astype(np.float32)
