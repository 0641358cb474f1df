"""A sparsity for each leaf, by its shape: large leaves have more to give."""

import math
from dataclasses import replace

from jaxsparse._patterns import Unstructured
from jaxsparse._plans.leaf_plan import LeafPlan
from jaxsparse._plans.plan import Plan


def distribute_by_erdos_renyi(plan: Plan) -> Plan:
    """The plan with as many weights in all, shared out among leaves by their shapes.

    Each leaf keeps a fraction of its weights in proportion to the sum of its sizes over
    their product, as in the random graphs of Erdos and Renyi: small leaves stay denser
    than large ones. Mocanu et al. (2018, arXiv:1707.04780) did so for matrices, Evci et
    al. (2020, arXiv:1911.11134) for convolutions ("ERK"), whose kernel sizes count as
    inputs and outputs do. Axes that a product contracts together count as one, and so
    do its output axes. What would keep more than all of its weights is dense.

    Args:
      plan: a plan. Of its leaves those that are pruned `Unstructured`, each with a
        sparsity of its own, are shared out; all others stay as they are.

    Returns:
      The plan, in which they keep as many weights as before in all, to within half a
      weight a leaf.

    Raises:
      ValueError: no leaf is pruned so.

    >>> import jax.numpy as jnp
    >>> from jaxsparse import plan_sparsity
    >>> kernel = lambda size: {"kernel": jnp.ones((size, size))}
    >>> params = {"a": kernel(8), "b": kernel(32)}
    >>> plan = plan_sparsity(params, Unstructured(0.8), dense_head=False)
    >>> print(distribute_by_erdos_renyi(plan))
    leaf      shape  plan
    a/kernel  8x8    31.25% unstructured
    b/kernel  32x32  83.01% unstructured
    """
    leaves = [
        leaf
        for leaf in plan.sparse
        if isinstance(leaf.pattern, Unstructured) and not leaf.pattern.across_leaves
    ]
    if not leaves:
        raise ValueError(
            "no leaf of this plan is pruned Unstructured with a sparsity of its own: "
            "plan with Unstructured(0.9), say, to have it shared out"
        )
    densities = _densities(leaves)
    shared = [_with_density(leaf, densities.get(leaf.path)) for leaf in plan.leaves]
    return Plan(tuple(shared))


def _densities(leaves: list[LeafPlan]) -> dict[str, float]:
    """The fraction that each leaf keeps: in proportion to its worth, but at most 1."""
    worth = {leaf.path: _worth(leaf) for leaf in leaves}
    sizes = {leaf.path: leaf.counts[0] for leaf in leaves}
    left, shared = float(sum(leaf.counts[1] for leaf in leaves)), dict(worth)
    while True:
        scale = left / sum(shared[path] * sizes[path] for path in shared)
        full = [path for path in shared if scale * shared[path] > 1]
        if not full:
            return dict.fromkeys(worth, 1.0) | {p: scale * shared[p] for p in shared}
        for path in full:
            del shared[path]
            left -= sizes[path]


def _worth(leaf: LeafPlan) -> float:
    """The sum of a leaf's sizes over their product, without those of batch axes."""
    assert leaf.shape is not None
    joined = (*leaf.contracted, *leaf.output, *leaf.batch)
    sizes = [size for i, size in enumerate(leaf.shape) if i not in joined]
    sizes += [math.prod(leaf.shape[i] for i in leaf.contracted)]
    sizes += [math.prod(leaf.shape[i] for i in leaf.output)]
    return sum(sizes) / math.prod(sizes)


def _with_density(leaf: LeafPlan, density: float | None) -> LeafPlan:
    if density is None:
        return leaf
    total, _ = leaf.counts
    kept = max(round(density * total), 1)
    if kept == total:
        reason = "its share by Erdos and Renyi is all of it"
        return LeafPlan(leaf.path, leaf.shape, reason=reason)
    return replace(leaf, pattern=Unstructured(1 - kept / total))
