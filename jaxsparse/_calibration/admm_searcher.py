"""ADMM on whole trees of parameters."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float32

from jaxsparse._calibration.admm import admm, fit_to_mask
from jaxsparse._calibration.fit_acting import fit_acting
from jaxsparse._calibration.held_out import best_shrinkage
from jaxsparse._calibration.layer_checks import check_layer
from jaxsparse._calibration.leaf_statistics import (
    LeafStatistics,
    Statistic,
    warn_of_few_tokens,
    warn_of_starved,
)
from jaxsparse._calibration.map_solves import map_solves
from jaxsparse._calibration.precondition import precondition
from jaxsparse._calibration.projections import kept_per_problem, projection
from jaxsparse._calibration.pruned_tree import pruned_tree
from jaxsparse._calibration.refinement import check_refinable, check_sweeps, refine
from jaxsparse._calibration.second_moments import match_second_moments, shrunk_moments
from jaxsparse._calibration.shrinkage import SHRINKAGE, Shrinkage, check_shrinkage
from jaxsparse._calibration.sparsegpt import inverse_factor, sparsegpt
from jaxsparse._calibration.sparsegpt_choices import kept_before_blocks, mask_choice
from jaxsparse._masks import SearchResult
from jaxsparse._patterns import NM, Block, Pattern, PerOutput, Unstructured
from jaxsparse._plans import LeafPlan, PlanLike, plan_for
from jaxsparse._sharding import reshard_like
from jaxsparse._trees import PyTree, flatten


#: SparseGPT's own damping.
_DAMPING = 0.01

_Solution = tuple[Float32[Array, "input output"], Bool[Array, "input output"]]


@dataclass(frozen=True)
class ADMMSearcher:
    """Prunes by ADMM, which finds masks from weights that compensate already.

    Boža, "Fast and Effective Weight Update for Pruned Large Language Models" (2024,
    arXiv:2401.02938), with the penalties of ALPS (Meng et al. 2024, arXiv:2406.07831).
    Supports n:m, transposable n:m, `PerOutput`, `Unstructured` within leaves, and
    `Block`; problems of one leaf, such as experts, are pruned equally. Weights are
    fitted to their mask at the end.

    ADMM guarantees no error. So each output, or each problem for `Unstructured` and
    blocks, has the better of two solutions over the shrunk second moment: this one, and
    that of SparseGPT; of weights fitted to Wanda's mask where SparseGPT does not
    support the pattern.

    Attributes:
      plan: a plan, rules or a pattern.
      steps: the most steps; each takes one matmul of the second moment's size with the
        weights. Most layers end after 30 to 60, when the mask does not change any more.
      packed: whether to return packed masks, one bit a weight.
      shrinkage: the fraction by which the second moment's entries off the diagonal are
        reduced first, or `"auto"`, as in `SparseGPTSearcher`.
      refine: the number of sweeps that improve masks and weights afterwards, as
        `refine_masks` does, for patterns that it supports.

    Raises:
      ValueError: `shrinkage` is not from 0 to 1 or "auto", `steps` is not positive, or
        `refine` is negative.
      TypeError: `steps` or `refine` is not an integer.

    >>> from jaxsparse import collect_statistics
    >>> pairs = jnp.repeat(jax.random.normal(jax.random.key(0), (99, 8)), 2, axis=1)
    >>> params = {"kernel": jnp.ones((16, 8))}
    >>> fn = lambda params, x: x @ params["kernel"]
    >>> statistics = collect_statistics(fn, params, [pairs])  # inputs 0 and 1 are equal
    >>> result = ADMMSearcher("1:2", shrinkage=0.0).search(params, statistics)
    >>> print(result.params["kernel"][:, 0].reshape(8, 2).sum(axis=1).round())
    [2. 2. 2. 2. 2. 2. 2. 2.]
    """

    plan: PlanLike = "2:4"
    steps: int = field(default=300, kw_only=True)
    packed: bool = field(default=False, kw_only=True)
    shrinkage: Shrinkage = field(default=SHRINKAGE, kw_only=True)
    refine: int = field(default=0, kw_only=True)
    statistic: ClassVar[Statistic] = "second_moment"

    def __post_init__(self) -> None:
        check_shrinkage(self.shrinkage)
        check_sweeps("steps", self.steps, least=1)
        check_sweeps("refine", self.refine)

    def search(self, params: PyTree, statistics: Any = None) -> SearchResult:
        """Prunes `params`. It reads values, so it runs outside `jit`.

        Args:
          params: a tree of arrays.
          statistics: second moments, from `collect_statistics`.

        Returns:
          The pruned parameters, with their dtypes, their masks and the plan.

        Raises:
          ValueError: statistics of a leaf are missing, do not fit, are not finite or
            all zero; weights are not finite; the pattern is not supported. Each error
            names the leaf.
          TypeError: a leaf has an integer dtype, which cannot be updated.

        Warns:
          UserWarning: a leaf has few tokens; a problem, such as an expert, met none,
            and is pruned by magnitude and not updated.
        """
        plan = plan_for(params, self.plan)
        leaves = flatten(params).by_path
        for leaf in plan.sparse:
            _check_supported(leaf)
            if self.refine:
                check_refinable(leaf, "search with refine=0")
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
        packed = pruned if self.packed else ()
        return pruned_tree(params, plan, pruned, packed=packed)

    def _prune(
        self, leaf: LeafPlan, weight: Any, statistics: LeafStatistics
    ) -> tuple[Array, Array]:
        prune = lambda shrinkage: _prune(
            weight,
            statistics,
            leaf.pattern,
            leaf.counts[1],
            self.steps,
            shrinkage,
            self.refine,
        )
        weight_of = lambda pruned: pruned[0]
        return best_shrinkage(prune, weight_of, weight, statistics, self.shrinkage)


@partial(jax.jit, static_argnums=(2, 3, 6))
def _prune(
    leaf: Array,
    statistics: LeafStatistics,
    pattern: Pattern,
    kept: int,
    steps: ArrayLike,
    shrinkage: ArrayLike,
    sweeps: int = 0,
) -> tuple[Array, Array]:
    """Returns the pruned leaf and its mask."""
    matrices = statistics.columns
    moments = shrunk_moments(statistics, shrinkage)
    weights = statistics.scaled_matrices(leaf)
    counts = jnp.asarray(kept_per_problem(pattern, kept, matrices))
    limits = jnp.zeros((len(counts), 0), jnp.int32)
    if _has_sparsegpt(pattern):
        limits = jnp.asarray(kept_before_blocks(pattern, kept, matrices))

    def prune_problem(weight, moment, count, limits):
        project = projection(pattern, count)
        solution = admm(weight, moment, project, steps)
        if _has_sparsegpt(pattern):
            choose, at_once = mask_choice(pattern, limits)
            factor = inverse_factor(moment, _DAMPING)
            start, mask = sparsegpt(weight, factor, choose, at_once)
        else:
            start, mask = weight, project(precondition(moment).scaled(weight))
        rival = fit_to_mask(weight, start, mask, moment), mask
        by_output = isinstance(pattern, PerOutput | NM) and _has_sparsegpt(pattern)
        return _better(weight, moment, solution, rival, by_output=by_output)

    updated, masks = map_solves(prune_problem, weights, moments, counts, limits)
    if sweeps:
        updated, masks = refine(pattern, weights, updated, masks, moments, sweeps)
    updated = fit_acting(statistics, weights, updated, masks, moments)
    mask = reshard_like(matrices.from_matrices(masks), leaf)
    weight = statistics.unscaled_leaf(updated, leaf)
    return jnp.where(mask, weight, jnp.zeros((), leaf.dtype)), mask


def _better(
    weight: Float32[Array, "input output"],
    moment: Float32[Array, "input input"],
    solution: _Solution,
    rival: _Solution,
    *,
    by_output: bool,
) -> _Solution:
    """Returns the solution of lower error, for each output if `by_output`."""

    def error(pruned):
        lost = weight - pruned
        image = jnp.matmul(moment, lost, precision=jax.lax.Precision.HIGHEST)
        return jnp.sum(lost * image, 0 if by_output else None, keepdims=True)

    rival_wins = error(rival[0]) < error(solution[0])
    pick = lambda new, old: jnp.where(rival_wins, new, old)
    return pick(rival[0], solution[0]), pick(rival[1], solution[1])


def _has_sparsegpt(pattern: Pattern) -> bool:
    """Whether SparseGPT supports a pattern that this searcher supports."""
    match pattern:
        case NM(transposable=True) | Block():
            return False
    return True


def _check_supported(leaf: LeafPlan) -> None:
    match leaf.pattern:
        case NM() | PerOutput() | Block() | Unstructured(across_leaves=False):
            return
    raise ValueError(
        f"leaf {leaf.path!r} of shape {leaf.shape} is planned {leaf.decision!r}, which "
        "ADMM does not support: create masks by create_masks or WandaSearcher, and "
        "weights for them by fit_weights"
    )
