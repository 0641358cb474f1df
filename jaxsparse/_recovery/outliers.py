"""How many outliers a leaf has: a measure of how much it suffers from pruning."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float32

from jaxsparse._calibration import LeafStatistics, fill_starved, match_statistics
from jaxsparse._plans import PlanLike, plan_for
from jaxsparse._trees import PyTree, flatten


def outlier_ratios(
    params: PyTree, plan: PlanLike, statistics: Any, *, threshold: float = 5.0
) -> dict[str, float]:
    """Returns the fraction of each leaf's weights that are outliers.

    Outliers are the weights whose `abs(w) * norm(x)`, Wanda's score, is more than
    `threshold` times the mean of the leaf. OWL prunes layers with many of them less
    (Yin et al., "Outlier Weighed Layerwise Sparsity (OWL)", 2024, arXiv:2310.05175,
    which takes the matrices of a block together). Give the result to `allocate` as
    `sensitivity`.

    Args:
      params: a tree of arrays: the weights before pruning.
      plan: a plan, rules or a pattern, which say which leaves to measure.
      statistics: the result of `collect_statistics`, with either statistic.
      threshold: the multiple of the mean above which a score is an outlier.

    Returns:
      The fractions, by path.

    Raises:
      ValueError: statistics or the plan do not fit.

    >>> from jaxsparse import collect_statistics
    >>> params = {"kernel": jnp.ones((16, 8)).at[0, 0].set(100.0)}
    >>> fn = lambda params, x: x @ params["kernel"]
    >>> statistics = collect_statistics(fn, params, [jnp.ones((4, 16))])
    >>> outlier_ratios(params, "2:4", statistics)
    {'kernel': 0.0078125}
    """
    leaves = flatten(params).by_path
    plan = plan_for(params, plan)
    shapes = {leaf.path: leaf.shape for leaf in plan.sparse}
    by_path = match_statistics(shapes, statistics)
    ratios = {
        path: _ratio(leaves[path], leaf, threshold) for path, leaf in by_path.items()
    }
    return {path: float(ratio) for path, ratio in jax.device_get(ratios).items()}


@jax.jit
def _ratio(
    leaf: Array, statistics: LeafStatistics, threshold: ArrayLike
) -> Float32[Array, ""]:
    norms = jnp.sqrt(fill_starved(statistics).mean_square)[:, :, None]
    scores = jnp.abs(statistics.scaled_matrices(leaf)) * norms
    limit = jnp.asarray(threshold, jnp.float32) * jnp.mean(scores)
    return jnp.mean((scores > limit).astype(jnp.float32))
