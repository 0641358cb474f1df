"""Least-squares weights for given masks, on whole trees."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxsparse._calibration.held_out import best_shrinkage
from jaxsparse._calibration.leaf_statistics import (
    LeafStatistics,
    warn_of_few_tokens,
    warn_of_starved,
)
from jaxsparse._calibration.least_squares import leaf_least_squares
from jaxsparse._calibration.second_moments import match_second_moments, shrunk_moments
from jaxsparse._calibration.shrinkage import SHRINKAGE, Shrinkage, check_shrinkage
from jaxsparse._masks import match_masks
from jaxsparse._patterns import as_bool
from jaxsparse._sharding import device_put_like
from jaxsparse._trees import PyTree, flatten, map_named


def fit_weights(
    params: PyTree, masks: PyTree, statistics: Any, *, shrinkage: Shrinkage = SHRINKAGE
) -> PyTree:
    """Returns the weights under these masks that best preserve each layer's outputs.

    For each output of a layer, solves the least squares over the weights that its mask
    keeps, whatever the pattern: the `v` that minimises `norm(x @ w - x @ v)` over the
    inputs `x` of the statistics. A 4096 x 4096 layer takes 4096 linear solves;
    `SparseGPTSearcher` comes close in a fraction of the time.

    Args:
      params: a tree of arrays: the weights before pruning.
      masks: a tree of bool or packed masks, with None for leaves to leave unchanged.
      statistics: second moments of every leaf with a mask, from `collect_statistics`.
      shrinkage: the fraction by which the second moment's entries off the diagonal are
        reduced first, or `"auto"`, as in `SparseGPTSearcher`. With 0 the weights are
        the least squares over the inputs themselves.

    Returns:
      A tree like `params`, with the same dtypes and exact zeros at masked positions.

    Raises:
      ValueError: masks or statistics do not fit, only mean squares were collected,
        weights are not finite, or `shrinkage` is not from 0 to 1 or
        "auto".
      TypeError: a masked leaf has an integer dtype.

    Warns:
      UserWarning: a leaf has fewer tokens than inputs; a problem, such as an expert,
        met no tokens, and its weights are masked and not fitted.

    >>> from jaxsparse import collect_statistics, create_masks
    >>> params = {"kernel": jnp.arange(128.0).reshape(16, 8)}
    >>> fn = lambda params, x: x @ params["kernel"]
    >>> statistics = collect_statistics(fn, params, 4 * [jnp.eye(16)])
    >>> fit_weights(params, create_masks(params), statistics)["kernel"][:4, 0]
    Array([ 0.,  0., 16., 24.], dtype=float32)
    """
    check_shrinkage(shrinkage)
    leaves = flatten(params).by_path
    matched = match_masks(leaves, masks)
    masked = {path: leaves[path] for path, mask in matched.items() if mask is not None}
    by_path = match_second_moments(masked, statistics, shrinkage)
    warn_of_few_tokens(by_path)
    warn_of_starved(by_path)

    def fit(path: str, leaf: Any) -> Any:
        if path not in by_path:
            return leaf
        run = partial(_fit, leaf, matched[path], by_path[path])
        fitted = best_shrinkage(run, lambda x: x, leaf, by_path[path], shrinkage)
        return device_put_like(fitted, leaf)

    return map_named(fit, params)


@jax.jit
def _fit(
    leaf: Array, mask: Array, statistics: LeafStatistics, shrinkage: ArrayLike
) -> Array:
    matrices, mask = statistics.columns, as_bool(mask, leaf)
    weights = statistics.scaled_matrices(leaf)
    masks = matrices.to_matrices(mask)
    moments = shrunk_moments(statistics, shrinkage)
    fitted = leaf_least_squares(statistics, weights, masks, moments)
    weight = statistics.unscaled_leaf(fitted, leaf)
    return jnp.where(mask, weight, jnp.zeros((), leaf.dtype))
