"""A sparsity for each leaf, by its shape: large leaves are pruned more."""

import math
from dataclasses import replace

from jaxsparse._patterns import Unstructured
from jaxsparse._plans.leaf_plan import LeafPlan
from jaxsparse._plans.plan import Plan
from jaxsparse._plans.plan_error import PlanError
from jaxsparse._trees import require_kind


def distribute_by_erdos_renyi(plan: Plan) -> Plan:
    """Distributes the kept weights of a plan among its leaves by their shapes.

    The density of a leaf is proportional to the sum of its sizes divided by their
    product, as in Erdos-Renyi random graphs: small leaves stay denser than large ones.
    Mocanu et al. (2018, arXiv:1707.04780) proposed it for matrices, Evci et al. (2020,
    arXiv:1911.11134) for convolutions ("ERK"), where kernel sizes count like inputs and
    outputs. The contracted axes of a product count as one axis, and so do its output
    axes. A leaf whose density would exceed 1 stays dense.

    Args:
      plan: a plan. Leaves with the pattern `Unstructured`, each with a sparsity of its
        own, get new sparsities; all others are unchanged.

    Returns:
      The plan with the new sparsities. In total these leaves keep as many weights as
      before, to within half a weight per leaf.

    Raises:
      ValueError: no leaf of the plan has such a pattern.
      TypeError: it is not a plan.

    >>> import jax
    >>> from jaxsparse import plan_sparsity
    >>> kernel = lambda n: {"kernel": jax.ShapeDtypeStruct((n, n), "float32")}
    >>> params = {"a": kernel(8), "b": kernel(32)}
    >>> plan = plan_sparsity(params, Unstructured(0.8), dense_head=False)
    >>> print(distribute_by_erdos_renyi(plan))
    leaf      shape  plan
    a/kernel  8x8    31.25% unstructured
    b/kernel  32x32  83.01% unstructured
    total     1,088  2 of 2 pruned: 80.0 % of weights
    """
    remedy = "give plan_sparsity(params, Unstructured(0.9))"
    require_kind("distribute_by_erdos_renyi", plan, (Plan,), remedy)
    leaves = [
        leaf
        for leaf in plan.sparse
        if isinstance(leaf.pattern, Unstructured) and not leaf.pattern.across_leaves
    ]
    if not leaves:
        raise PlanError(
            "no leaf of this plan is pruned Unstructured with a sparsity of its own: "
            "plan with a pattern such as Unstructured(0.9)"
        )
    densities = _densities(leaves)
    return Plan(
        tuple(_with_density(leaf, densities.get(leaf.path)) for leaf in plan.leaves)
    )


def _densities(leaves: list[LeafPlan]) -> dict[str, float]:
    """Returns the density of each leaf: proportional to its share, but at most 1."""
    shares = {leaf.path: _share(leaf) for leaf in leaves}
    sizes = {leaf.path: leaf.counts[0] for leaf in leaves}
    densities = dict.fromkeys(shares, 1.0)
    kept = float(sum(leaf.counts[1] for leaf in leaves))
    while True:
        scale = kept / sum(share * sizes[path] for path, share in shares.items())
        full = [path for path, share in shares.items() if scale * share > 1]
        if not full:
            return densities | {path: scale * x for path, x in shares.items()}
        for path in full:
            del shares[path]
            kept -= sizes[path]


def _share(leaf: LeafPlan) -> float:
    """Returns the sum of a leaf's sizes over their product, without batch axes."""
    assert leaf.shape is not None
    matmul = (*leaf.contracted, *leaf.output, *leaf.batch)
    sizes = [size for i, size in enumerate(leaf.shape) if i not in matmul]
    sizes += [math.prod(leaf.shape[i] for i in leaf.contracted)]
    sizes += [math.prod(leaf.shape[i] for i in leaf.output)]
    return sum(sizes) / math.prod(sizes)


def _with_density(leaf: LeafPlan, density: float | None) -> LeafPlan:
    if density is None:
        return leaf
    total, _ = leaf.counts
    kept = max(round(density * total), 1)
    if kept == total:
        return LeafPlan(leaf.path, leaf.shape, reason="Erdos-Renyi density is 1")
    return replace(leaf, pattern=Unstructured(1 - kept / total))
