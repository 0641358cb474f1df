"""Products of one input with several weights under `jax.vmap`."""

from collections.abc import Callable, Sequence
from itertools import groupby

import jax.numpy as jnp
from jaxtyping import Array


def multiply_batch(
    multiply: Callable[[int, Array, Sequence[Sequence[Array]]], list[Array]],
    stack: int,
    size: int,
    x: Array,
    weights: Sequence[Sequence[Array]],
    batched: Sequence[bool],
) -> tuple[list[Array], list[bool]]:
    """Multiplies by stacks of weights, and apart by weights that all share.

    Args:
      multiply: a function of the number of leading axes that stack weights, with the
        rows of each, and of the rows and the arrays of each weight. It returns the
        product with each.
      stack: the number of such axes without the batch.
      size: that of the batch.
      x: rows, perhaps with the batch as their first axis.
      weights: the arrays of each weight, perhaps likewise.
      batched: for `x`, and then for each array, whether it has a batch axis.

    Returns:
      The products, and whether they have the batch as their first axis.
    """
    each = len(weights[0])
    flags = [batched[1 + i * each :][:each] for i in range(len(weights))]
    products: list[Array] = []
    out_batched: list[bool] = []
    for is_stacked, group in groupby(range(len(weights)), lambda i: any(flags[i])):
        indices = [*group]
        own = [weights[i] for i in indices]
        if is_stacked:
            rows = _stack(size, x, batched[0])
            stacks = [
                [_stack(size, *pair) for pair in zip(weights[i], flags[i], strict=True)]
                for i in indices
            ]
            products += multiply(stack + 1, rows, stacks)
        elif batched[0]:  # more rows
            more = multiply(stack, jnp.moveaxis(x, 0, stack), own)
            products += [jnp.moveaxis(y, stack, 0) for y in more]
        else:
            products += multiply(stack, x, own)
        out_batched += [is_stacked or batched[0]] * len(indices)
    return products, out_batched


def _stack(size: int, array: Array, is_batched: bool) -> Array:
    return array if is_batched else jnp.broadcast_to(array, (size, *array.shape))
