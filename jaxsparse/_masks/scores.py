"""Scores for whole trees, for `create_masks` to rank by instead of magnitude."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxsparse._patterns import wide_float
from jaxsparse._trees import PyTree, flatten, is_numeric, map_named


def random_scores(params: PyTree, key: jax.Array) -> PyTree:
    """Returns uniform random scores, which make masks of any pattern random.

    Args:
      params: a tree of arrays.
      key: the random key.

    Returns:
      A tree like `params` of float32 scores in `[0, 1)`; leaves that hold no real
      numbers stay as they are.

    >>> from jaxsparse import create_masks
    >>> params = {"kernel": jnp.ones((16, 8))}
    >>> scores = random_scores(params, jax.random.key(0))
    >>> print(create_masks(params, "2:4", scores=scores)["kernel"].sum())
    64
    """
    leaves = flatten(params).by_path
    indices = {path: index for index, path in enumerate(leaves)}

    def score(path, leaf):
        if not is_numeric(leaf):
            return leaf
        return jax.random.uniform(jax.random.fold_in(key, indices[path]), leaf.shape)

    return map_named(score, params)


def saliency_scores(params: PyTree, gradients: PyTree) -> PyTree:
    """Returns `abs(w * g)`, the first-order change of the loss without each weight.

    Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient
    Inference" (2017, arXiv:1611.06440); at initialisation it is SNIP, of Lee et al.
    (2019, arXiv:1810.02340).

    Args:
      params: a tree of arrays.
      gradients: a tree like `params`: the gradients of the loss.

    Returns:
      A tree like `params` of scores, in float32 or the wider dtype of the two, since
      a product of bfloat16s has too many ties. Leaves that hold no real numbers stay as
      they are.

    Raises:
      ValueError: a gradient is missing or has another shape than its leaf.

    >>> params = {"kernel": jnp.array([1.0, -2.0])}
    >>> saliency_scores(params, {"kernel": jnp.array([3.0, 4.0])})["kernel"]
    Array([3., 8.], dtype=float32)
    """
    slopes = flatten(gradients).by_path

    def score(path: str, leaf: Array):
        if not is_numeric(leaf):
            return leaf
        slope = slopes.get(path)
        if not is_numeric(slope) or slope.shape != leaf.shape:
            got = getattr(slope, "shape", slope)
            raise ValueError(
                f"leaf {path!r} of shape {leaf.shape} needs a real gradient of the "
                f"same shape, got {got}"
            )
        dtype = wide_float(leaf.dtype, slope.dtype)
        return jnp.abs(leaf.astype(dtype) * slope.astype(dtype))

    return map_named(score, params)
