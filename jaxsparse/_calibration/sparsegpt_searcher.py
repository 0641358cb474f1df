"""SparseGPT on whole trees of parameters."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxsparse._calibration.fit_acting import fit_acting
from jaxsparse._calibration.held_out import best_shrinkage
from jaxsparse._calibration.layer_checks import check_layer
from jaxsparse._calibration.leaf_factors import acting_weights
from jaxsparse._calibration.leaf_statistics import (
    LeafStatistics,
    Statistic,
    warn_of_few_tokens,
    warn_of_starved,
)
from jaxsparse._calibration.least_squares import leaf_least_squares
from jaxsparse._calibration.map_solves import map_solves
from jaxsparse._calibration.pruned_tree import pruned_tree
from jaxsparse._calibration.refinement import check_refinable, check_sweeps, refine
from jaxsparse._calibration.second_moments import match_second_moments, shrunk_moments
from jaxsparse._calibration.shrinkage import SHRINKAGE, Shrinkage, check_shrinkage
from jaxsparse._calibration.sparsegpt import inverse_factor, sparsegpt
from jaxsparse._calibration.sparsegpt_choices import kept_before_blocks, mask_choice
from jaxsparse._masks import SearchResult
from jaxsparse._patterns import NM, Pattern, PerOutput, Unstructured
from jaxsparse._plans import LeafPlan, PlanLike, plan_for
from jaxsparse._sharding import reshard_like
from jaxsparse._trees import PyTree, flatten


#: Whether weights are updated, and how.
Update = bool | Literal["optimal"]


@dataclass(frozen=True)
class SparseGPTSearcher:
    """Prunes by SparseGPT, which updates the remaining weights to compensate.

    Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned
    in One-Shot" (2023, arXiv:2301.00774). Supports n:m, `PerOutput` and `Unstructured`;
    the unstructured ones prune every block of 128 inputs equally, as in the paper. For
    other patterns create masks and pass them to `fit_weights`.

    Attributes:
      plan: a plan, rules or a pattern.
      damping: the value added to the diagonal of the second moment, as a fraction of
        its mean. Increased tenfold, with a warning, while there is no finite factor.
      update_weights: True for the algorithm's weights, False for its masks alone,
        `"optimal"` for the least-squares weights under those masks.
      packed: whether to return packed masks, one bit a weight.
      shrinkage: the fraction by which the second moment's entries off the diagonal are
        reduced first. 0 is the published algorithm, which fits the weights to the
        calibration inputs; 1 ranks weights as Wanda does and updates none. A value
        between them loses less on inputs of another kind. `"auto"` takes the best of 0,
        0.05, 0.1, 0.2, 0.3 and 0.5 for each leaf, by the error on the batches that
        `collect_statistics` held out, in six times the time.
      refine: the number of sweeps that improve masks and weights together afterwards,
        as `refine_masks` does; 10 are enough. They do not increase the error over the
        shrunk second moment. For n:m with up to 70 masks of a group, such as 2:4 and
        4:8, `PerOutput` and `Unstructured`.

    Raises:
      ValueError: `damping` is not positive and finite, `shrinkage` is not from 0 to 1
        or "auto", `update_weights` is none of the above, or `refine` is negative.
      TypeError: `refine` is not an integer.

    >>> from jaxsparse import collect_statistics
    >>> pairs = jnp.repeat(jax.random.normal(jax.random.key(0), (99, 8)), 2, axis=1)
    >>> params = {"kernel": jnp.ones((16, 8))}
    >>> fn = lambda params, x: x @ params["kernel"]
    >>> statistics = collect_statistics(fn, params, [pairs])  # inputs 0 and 1 are equal
    >>> result = SparseGPTSearcher("1:2", damping=1e-6).search(params, statistics)
    >>> print(result.params["kernel"][:4, 0].round(3))
    [0. 2. 0. 2.]
    """

    plan: PlanLike = "2:4"
    damping: float = 0.01
    update_weights: Update = True
    packed: bool = False
    shrinkage: Shrinkage = field(default=SHRINKAGE, kw_only=True)
    refine: int = field(default=0, kw_only=True)
    statistic: ClassVar[Statistic] = "second_moment"

    def __post_init__(self) -> None:
        if not 0 < self.damping < math.inf:
            raise ValueError(
                "damping must be a positive fraction of a mean, such as 0.01, got "
                f"{self.damping}"
            )
        check_shrinkage(self.shrinkage)
        check_sweeps("refine", self.refine)
        if self.update_weights not in (True, False, "optimal"):
            raise ValueError(
                "update_weights must be True, False or 'optimal', got "
                f"{self.update_weights!r}"
            )

    def search(self, params: PyTree, statistics: Any = None) -> SearchResult:
        """Prunes `params`. It reads values, so it runs outside `jit`.

        Args:
          params: a tree of arrays.
          statistics: second moments, from `collect_statistics`.

        Returns:
          The pruned parameters, with their dtypes, their masks and the plan.

        Raises:
          ValueError: statistics of a leaf are missing, do not fit, are not finite or
            all zero; weights are not finite; the pattern is not supported; a second
            moment has no factor. Each error names the leaf.
          TypeError: a leaf has an integer dtype, which cannot be updated.

        Warns:
          UserWarning: a leaf has fewer tokens than inputs, or took more damping than
            `damping`; a problem, such as an expert, met no tokens, and is pruned by
            magnitude and not updated.
        """
        plan = plan_for(params, self.plan)
        leaves = flatten(params).by_path
        for leaf in plan.sparse:
            if self.refine:
                check_refinable(leaf, "search with refine=0")
            _check_supported(leaf)
        weights = {leaf.path: leaves[leaf.path] for leaf in plan.sparse}
        by_path = match_second_moments(weights, statistics, self.shrinkage)
        for leaf in plan.sparse:
            check_layer(leaf, by_path[leaf.path].columns)
        warn_of_few_tokens(by_path)
        warn_of_starved(by_path)
        pruned = {
            leaf.path: self._prune(leaf, leaves[leaf.path], by_path[leaf.path])
            for leaf in plan.sparse
        }
        _check_damping(pruned, leaves, self.damping)
        with_masks = {path: (x.weight, x.mask) for path, x in pruned.items()}
        packed = pruned if self.packed else ()
        return pruned_tree(params, plan, with_masks, packed=packed)

    def _prune(
        self, leaf: LeafPlan, weight: Any, statistics: LeafStatistics
    ) -> "_Pruned":
        prune = lambda shrinkage: _prune(
            weight,
            statistics,
            leaf.pattern,
            leaf.counts[1],
            self.damping,
            shrinkage,
            self.update_weights,
            self.refine,
        )
        weight_of = lambda pruned: pruned.weight
        return best_shrinkage(prune, weight_of, weight, statistics, self.shrinkage)


class _Pruned(NamedTuple):
    """A pruned leaf, its mask, and the damping that each problem took."""

    weight: Array
    mask: Array
    damping: Array


@partial(jax.jit, static_argnums=(2, 3, 6, 7))
def _prune(
    leaf: Array,
    statistics: LeafStatistics,
    pattern: Pattern,
    kept: int,
    damping: ArrayLike,
    shrinkage: ArrayLike,
    update: Update,
    sweeps: int = 0,
) -> _Pruned:
    matrices = statistics.columns
    moments = shrunk_moments(statistics, shrinkage)
    weights = statistics.scaled_matrices(leaf)
    limits = jnp.asarray(kept_before_blocks(pattern, kept, matrices))
    acting = acting_weights(statistics)

    def prune_problem(weight, moment, limits, acting):
        factor = inverse_factor(moment, damping)
        choose, at_once = mask_choice(pattern, limits)
        updated, mask = sparsegpt(weight, factor, choose, at_once, acting)
        is_finite = jnp.isfinite(factor.upper).all()
        return updated, mask, jnp.where(is_finite, factor.damping, jnp.inf)

    updated, masks, dampings = map_solves(
        prune_problem, weights, moments, limits, acting
    )
    if sweeps:
        updated, masks = refine(pattern, weights, updated, masks, moments, sweeps)
        updated = fit_acting(statistics, weights, updated, masks, moments)
    if update == "optimal":
        updated = leaf_least_squares(statistics, weights, masks, moments)
    mask = reshard_like(matrices.from_matrices(masks), leaf)
    weight = statistics.unscaled_leaf(updated, leaf)
    source = weight if update else leaf
    return _Pruned(jnp.where(mask, source, jnp.zeros((), leaf.dtype)), mask, dampings)


def _check_supported(leaf: LeafPlan) -> None:
    match leaf.pattern:
        case NM(transposable=False) | PerOutput() | Unstructured(across_leaves=False):
            return
    raise ValueError(
        f"leaf {leaf.path!r} of shape {leaf.shape} is planned {leaf.decision!r}, which "
        "SparseGPT does not support: create masks by create_masks or WandaSearcher, "
        "and weights for them by fit_weights"
    )


def _check_damping(
    pruned: Mapping[str, _Pruned], leaves: Mapping[str, Any], damping: float
) -> None:
    """Raises if a leaf has no factor, and warns if one took more damping."""
    largest = jax.device_get(
        {path: jnp.max(leaf.damping) for path, leaf in pruned.items()}
    )
    for path, used in largest.items():
        if not np.isfinite(used):
            raise ValueError(
                f"the second moment of leaf {path!r} of shape {leaves[path].shape} has "
                f"no Cholesky factor, with damping from {damping} on: it is not a "
                "second moment, or needs more damping"
            )
    raised = {path: float(used) for path, used in largest.items() if used > 2 * damping}
    if raised:
        path, used = max(raised.items(), key=lambda item: item[1])
        warnings.warn(
            f"the second moments of {len(raised)} of {len(pruned)} leaves had no "
            f"Cholesky factor with damping {damping}; leaf {path!r} took {used:.3g}",
            stacklevel=3,
        )
