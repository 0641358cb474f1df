"""How much an error of each weight matters to the outputs of its layer."""

from collections.abc import Mapping

import jax
from jaxtyping import Array, Float32

from jaxsparse._calibration.leaf_statistics import (
    LeafStatistics,
    fill_starved,
)
from jaxsparse._calibration.some_statistics import match_some_statistics
from jaxsparse._trees import PyTree, map_named


def input_importances(
    params: PyTree, statistics: Mapping[str, LeafStatistics]
) -> PyTree:
    """Returns the mean square of what each weight is multiplied by.

    If inputs were not correlated, an error `e` of a weight would add `importance * e^2`
    to the mean squared error of its output. llama.cpp's "importance matrix" has the
    same numbers.

    Args:
      params: a tree of arrays.
      statistics: the result of `collect_statistics`, with either statistic.

    Returns:
      A tree like `params` of float32 arrays of the shapes of the leaves, with None for
      leaves without statistics. A problem that met no tokens, such as an expert, has
      ones.

    Raises:
      ValueError: statistics do not fit their leaf, are not finite or all zero; or no
        leaf has any.

    >>> import jax.numpy as jnp
    >>> from jaxsparse import collect_statistics
    >>> params = {"kernel": jnp.ones((16, 8))}
    >>> inputs = jnp.tile(jnp.array([1.0, 3.0, 2.0, 0.0]), (5, 4))
    >>> fn = lambda params, x: x @ params["kernel"]
    >>> statistics = collect_statistics(fn, params, [inputs])
    >>> input_importances(params, statistics)["kernel"][:4, 0]
    Array([1., 9., 4., 0.], dtype=float32)
    """
    by_path = match_some_statistics(params, statistics)
    return map_named(
        lambda path, _: _importances(by_path[path]) if path in by_path else None, params
    )


@jax.jit
def _importances(statistics: LeafStatistics) -> Float32[Array, "..."]:
    mean_square = fill_starved(statistics).mean_square
    importances = statistics.columns.spread_inputs(mean_square)
    factors = statistics.factors
    return importances if factors is None else importances * factors**2
