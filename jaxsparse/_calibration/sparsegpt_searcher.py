"""SparseGPT on whole trees."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from jaxsparse._calibration.leaf_statistics import (
    LeafStatistics,
    Statistic,
    check_updatable,
    match_statistics,
    warn_of_few_tokens,
)
from jaxsparse._calibration.least_squares import masked_least_squares
from jaxsparse._calibration.matrices import LayerMatrices
from jaxsparse._calibration.sparsegpt import BLOCK, Choose, inverse_factor, sparsegpt
from jaxsparse._masks import SearchResult
from jaxsparse._patterns import (
    NM,
    Pattern,
    PerOutput,
    Unstructured,
    best_nm_mask,
    best_row_mask,
    best_unstructured_masks,
    pack_mask,
    rank_by_magnitude,
)
from jaxsparse._plans import (
    LeafPlan,
    PlanLike,
    plan_for,
)
from jaxsparse._sharding import device_put_like, replicate, reshard_like
from jaxsparse._trees import flatten, map_named


#: Whether weights are updated, and how.
Update = bool | Literal["optimal"]


@dataclass(frozen=True)
class SparseGPTSearcher:
    """Prunes weight by weight, and changes those that are left to make up for it.

    Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned
    in One-Shot" (2023, arXiv:2301.00774). For n:m, `PerOutput` and `Unstructured`; the
    unstructured ones prune every block of 128 inputs equally, as in the paper. For
    other patterns make masks and hand them to `fit_weights`.

    Attributes:
      plan: a plan, rules or a pattern.
      damping: what is added to the diagonal of the second moment, as a fraction of its
        mean. Ten times as much, with a warning, where there is no finite factor.
      update_weights: True for the algorithm's weights, False for its masks alone,
        `"optimal"` for the least squares with those masks.
      packed: whether masks come packed, one bit a weight.

    Raises:
      ValueError: a damping that is not positive, or an update that there is not.

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
    statistic: ClassVar[Statistic] = "second_moment"

    def __post_init__(self) -> None:
        if not 0 < self.damping < math.inf:
            raise ValueError(
                "damping is a positive fraction of a mean, 0.01 say: got "
                f"{self.damping}"
            )
        if self.update_weights not in (True, False, "optimal"):
            raise ValueError(
                "update_weights is True, False or 'optimal', got "
                f"{self.update_weights!r}"
            )

    def search(self, params: PyTree, statistics: Any = None) -> SearchResult:
        """Prunes `params`; it reads values, so it runs outside `jit`.

        Args:
          params: a tree of arrays.
          statistics: the second moments that `collect_statistics` measured.

        Returns:
          The pruned parameters, in their own dtypes, their masks and the plan.

        Raises:
          ValueError: statistics that are missing, do not fit, are not finite or all
            zero; weights that are not finite; a pattern that there is no such search
            for; a second moment without a factor; each naming the leaf.
          TypeError: a leaf of integers, which can't be updated.

        Warns:
          UserWarning: fewer tokens than inputs, or a larger damping than asked for.
        """
        plan = plan_for(params, self.plan)
        leaves, _ = flatten(params)
        shapes = {leaf.path: leaf.shape for leaf in plan.sparse}
        known = match_statistics(shapes, statistics)
        for leaf in plan.sparse:
            _check_leaf(leaf, leaves[leaf.path], known[leaf.path].columns)
        warn_of_few_tokens(known)
        found = {
            leaf.path: _prune(
                leaves[leaf.path],
                known[leaf.path],
                leaf.pattern,
                leaf.counts[1],
                self.damping,
                self.update_weights,
            )
            for leaf in plan.sparse
        }
        _check_damping(found, leaves, self.damping)

        def mask(path, leaf):
            if path not in found:
                return None
            kept, axis = device_put_like(found[path].mask, leaf), plan[path].axis
            return pack_mask(kept, axis) if self.packed and axis is not None else kept

        def weight(path, leaf):
            return device_put_like(found[path].weight, leaf) if path in found else leaf

        return SearchResult(map_named(weight, params), map_named(mask, params), plan)


class _Pruned(NamedTuple):
    """One leaf: its weights, its mask, and the damping that each problem took."""

    weight: Array
    mask: Array
    damping: Array


@partial(jax.jit, static_argnums=(2, 3, 5))
def _prune(
    leaf: Array,
    statistics: LeafStatistics,
    pattern: Pattern,
    kept: int,
    damping: ArrayLike,
    update: Update,
) -> _Pruned:
    columns, moments = statistics.columns, statistics.second_moment
    weights, moments = columns.split(leaf.astype(jnp.float32)), replicate(moments)
    limits = _limits(pattern, kept, columns)

    def one(weight, moment, limits):
        factor = inverse_factor(moment, damping)
        choose, at_once = _choice(pattern, limits)
        updated, mask = sparsegpt(weight, factor, choose, at_once)
        fine = jnp.isfinite(factor.upper).all()
        return updated, mask, jnp.where(fine, factor.damping, jnp.inf)

    updated, masks, damped = jax.vmap(one)(weights, moments, limits)
    if update == "optimal":
        updated = jax.vmap(masked_least_squares)(weights, masks, moments)
    mask = reshard_like(columns.join(masks), leaf)
    weight = reshard_like(columns.join(updated), leaf).astype(leaf.dtype)
    source = weight if update else leaf
    return _Pruned(jnp.where(mask, source, jnp.zeros((), leaf.dtype)), mask, damped)


def _choice(pattern: Pattern, limits: Array) -> tuple[Choose, int]:
    """How masks are chosen, and of how many inputs at once."""
    match pattern:
        case NM(n=n, m=m):
            return lambda scores, _: best_nm_mask(
                rank_by_magnitude(scores), n, m, axis=0
            ), m
        case PerOutput():
            best = lambda ranked, kept: best_row_mask(ranked, kept, rows=(1,))
        case _:
            best = lambda ranked, kept: best_unstructured_masks([ranked], kept)[0]

    def choose(scores, first):
        block = first // np.int32(BLOCK)
        return best(rank_by_magnitude(scores), limits[block + 1] - limits[block])

    return choose, BLOCK


def _limits(pattern: Pattern, kept: int, columns: LayerMatrices) -> np.ndarray:
    """How many weights are kept before each block of inputs, of each problem.

    Every input keeps the same share, to the nearest weight.
    """
    problems = columns.problems
    ends = np.minimum(
        np.arange(-(-columns.channels // BLOCK) + 1) * BLOCK, columns.channels
    )
    match pattern:
        case PerOutput():
            shares = [kept] * problems
        case _:  # of the whole leaf
            shares = [
                kept * (i + 1) // problems - kept * i // problems
                for i in range(problems)
            ]
    limits = [
        [share * int(end) // columns.channels for end in ends] for share in shares
    ]
    return np.array(limits, np.int32)


def _check_leaf(leaf: LeafPlan, weight: Any, columns: LayerMatrices) -> None:
    match leaf.pattern:
        case NM(transposable=False) | PerOutput() | Unstructured(across_leaves=False):
            pass
        case _:
            raise ValueError(
                f"leaf {leaf.path!r} of shape {leaf.shape} is planned {leaf.decision}, "
                "which SparseGPT does not search: make masks by create_masks or "
                "WandaSearcher, and weights for them by fit_weights"
            )
    if isinstance(leaf.pattern, NM) and columns.inputs[-1] != leaf.axis:
        raise ValueError(
            f"the statistics of leaf {leaf.path!r} of shape {leaf.shape} are for "
            f"groups along axis {columns.inputs[-1]}, it is planned {leaf.decision}: "
            "collect them with the same plan"
        )
    rows = set(range(len(columns.shape))) - set(columns.inputs)
    if isinstance(leaf.pattern, PerOutput) and set(leaf.rows) != rows:
        raise ValueError(
            f"leaf {leaf.path!r} of shape {leaf.shape} has outputs along axes "
            f"{sorted(rows)} by its statistics, along {list(leaf.rows)} by the plan: "
            "plan with fn, without an axis in the rule"
        )
    check_updatable(leaf.path, weight)


def _check_damping(
    found: Mapping[str, _Pruned], leaves: Mapping[str, Any], damping: float
) -> None:
    """Raises for a leaf without a factor, warns where one took more damping."""
    took = jax.device_get({path: jnp.max(one.damping) for path, one in found.items()})
    for path, most in took.items():
        if not np.isfinite(most):
            raise ValueError(
                f"the second moment of leaf {path!r} of shape {leaves[path].shape} has "
                f"no Cholesky factor, with damping from {damping} on: it is no second "
                "moment, or needs a larger damping"
            )
    raised = {path: float(most) for path, most in took.items() if most > 2 * damping}
    if raised:
        path, most = max(raised.items(), key=lambda item: item[1])
        warnings.warn(
            f"the second moments of {len(raised)} of {len(found)} leaves had no "
            f"Cholesky factor with damping {damping}; leaf {path!r} took {most:.3g}",
            stacklevel=3,
        )
