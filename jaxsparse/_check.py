"""Does a tree obey its plan?"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxsparse._paths import flatten
from jaxsparse._plan import PlanLike, plan_for
from jaxsparse._score import is_zero


def check_sparsity(params: PyTree, plan: PlanLike = "2:4") -> None:
    """Raises unless every leaf that the plan prunes obeys its pattern.

    It reads values, so it runs outside `jit`: after a restore, before an export.

    Args:
      params: a tree of arrays.
      plan: a plan, rules or a pattern.

    Raises:
      ValueError: groups with more than `n` non-zero weights (NaN is one), naming every
        leaf that has any and its first bad group; or the plan does not fit.

    >>> params = {"kernel": jnp.ones((16, 8))}
    >>> check_sparsity(params, "2:4")
    Traceback (most recent call last):
    ValueError: not sparse as planned; mask_params(params, masks) makes it so:
      'kernel' of shape (16, 8), 2:4 along axis 0: 32 of 32 groups keep more than 2; the
      first, with 4, starts at (0, 0)
    """
    plan = plan_for(params, plan)
    leaves, _ = flatten(params)
    faults = []
    for leaf in plan.sparse:
        assert leaf.pattern is not None
        assert leaf.axis is not None
        counts = np.asarray(_nonzeros(leaves[leaf.path], leaf.pattern.m, leaf.axis))
        bad = counts > leaf.pattern.n
        if not bad.any():
            continue
        group = np.argwhere(bad)[0]
        start = [int(i) for i in group]
        start[leaf.axis] *= leaf.pattern.m
        faults.append(
            f"  {leaf.path!r} of shape {leaf.shape}, {leaf.decision}: {bad.sum()} of "
            f"{bad.size} groups keep more than {leaf.pattern.n}; the first, with "
            f"{counts[tuple(group)]}, starts at {tuple(start)}"
        )
    if faults:
        raise ValueError(
            "not sparse as planned; mask_params(params, masks) makes it so:\n"
            + "\n".join(faults)
        )


@partial(jax.jit, static_argnums=(1, 2))
def _nonzeros(weight: jax.Array, m: int, axis: int) -> jax.Array:
    """The number of non-zero weights in every group."""
    shape = weight.shape
    groups = (*shape[:axis], shape[axis] // m, m, *shape[axis + 1 :])
    return jnp.sum(~is_zero(weight).reshape(groups), axis=axis + 1, dtype=jnp.int32)
