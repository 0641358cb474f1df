"""Statistics of one leaf's inputs, and checks that they fit a plan and its weights."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Shaped

from jaxsparse._calibration.matrices import LayerMatrices
from jaxsparse._sharding import reshard_like


#: What is measured: the mean square of each input, or the mean product of every two.
Statistic = Literal["mean_square", "second_moment"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["moments", "tokens", "factors", "held_out"],
    meta_fields=["columns"],
)
@dataclass(frozen=True)
class LeafStatistics:
    """Statistics of the inputs of one leaf.

    A leaf has one problem for each expert, each layer of a stack, or each feature group
    of a convolution. Most leaves have a single problem.

    Attributes:
      moments: float32 means over tokens: of the square of each input, of shape
        `[problem, input]`, or of the product of every two inputs, of shape `[problem,
        input, input]`.
      tokens: the number of tokens of each problem, float32, of shape `[problem]`; the
        sum of their weights if tokens were weighted. Where one product has several
        problems of 16 inputs or more, such as experts, a token that is all zero in one
        of them was not sent there and is not counted.
      columns: how the axes of the leaf map to problems, inputs and outputs.
      factors: what each weight is multiplied by before its product, float32, of the
        shape of the leaf; None for a leaf that is not scaled.
      held_out: the statistics of the batches that were held out of these, None if none
        were.
    """

    moments: Any  # trees of it may hold shapes or shardings as well
    tokens: Any
    columns: LayerMatrices
    factors: Any = None
    held_out: Any = None

    @property
    def mean_square(self) -> Float32[Array, "problem input"]:
        """The mean square of each input."""
        moments = self.moments
        return moments if moments.ndim == 2 else jnp.diagonal(moments, axis1=1, axis2=2)

    @property
    def second_moment(self) -> Float32[Array, "problem input input"]:
        """The mean product of every two inputs.

        Raises:
          ValueError: only mean squares were collected.
        """
        if self.moments.ndim == 2:
            raise ValueError(
                "only mean squares were collected; this needs "
                "collect_statistics(..., statistic='second_moment')"
            )
        return self.moments

    def scaled_matrices(
        self, leaf: Shaped[Array, "..."]
    ) -> Float32[Array, "problem input output"]:
        """Returns the leaf times its factors, as the matrices of its problems."""
        matrices = self.columns.to_matrices(leaf.astype(jnp.float32))
        if self.factors is None:
            return matrices
        return matrices * self.columns.to_matrices(self.factors)

    def unscaled_leaf(
        self, matrices: Float32[Array, "problem input output"], leaf: Array
    ) -> Array:
        """Returns the leaf of which these are the scaled matrices, with its dtype.

        Weights whose factor is zero are those of `leaf`.
        """
        if self.factors is not None:
            factors = self.columns.to_matrices(self.factors)
            weights = self.columns.to_matrices(leaf.astype(jnp.float32))
            matrices = jnp.where(factors == 0, weights, matrices / factors)
        return reshard_like(self.columns.from_matrices(matrices), leaf).astype(
            leaf.dtype
        )

    def rearranged(self, move: Callable[[Array], Array]) -> "LeafStatistics":
        """Returns the statistics of `move(leaf)`, which has the weights elsewhere.

        Args:
          move: takes an array of the shape of the leaf and permutes inputs, problems,
            or outputs of all inputs alike, as `permute_channels` does.
        """
        shape = (self.columns.num_problems, self.columns.inputs_per_problem)
        numbers = self.columns.spread_inputs(
            jnp.arange(math.prod(shape)).reshape(shape)
        )
        moved = self.columns.to_matrices(move(numbers))
        problem, inputs = jnp.divmod(moved[:, :, 0], shape[1])
        index = (problem, inputs)
        if self.moments.ndim == 3:
            index = (problem[:, :, None], inputs[:, :, None], inputs[:, None, :])
        held_out = self.held_out
        return replace(
            self,
            moments=self.moments[index],
            tokens=self.tokens[problem[:, 0]],
            factors=None if self.factors is None else move(self.factors),
            held_out=None if held_out is None else held_out.rearranged(move),
        )


def match_statistics(
    shapes: Mapping[str, tuple[int, ...] | None], statistics: Any
) -> dict[str, LeafStatistics]:
    """Returns the statistics of leaves by path, checked against their shapes.

    Raises:
      ValueError: statistics of a leaf are missing, are for another shape, are not
        finite, or are all zero in every problem.
    """
    matched = {
        path: _statistics_of(path, shape, statistics) for path, shape in shapes.items()
    }
    checks = {path: _check_values(leaf.mean_square) for path, leaf in matched.items()}
    for path, (finite, zero) in jax.device_get(checks).items():
        shape = matched[path].columns.shape
        if not finite:
            raise ValueError(
                f"the statistics of leaf {path!r} of shape {shape} are not finite: "
                "collect them again"
            )
        if zero.all():
            raise ValueError(
                f"all inputs of leaf {path!r} of shape {shape} were zero in every "
                "batch, so its statistics are empty: use batches that reach it, or "
                "keep it dense by a rule"
            )
    return matched


def starved_problems(statistics: LeafStatistics) -> Bool[Array, " problem"]:
    """Returns which problems met no tokens, or tokens of zero inputs only."""
    return (statistics.mean_square == 0).all(1)


def fill_starved(statistics: LeafStatistics) -> LeafStatistics:
    """Returns the statistics with those of starved problems replaced.

    All inputs of such a problem count as uncorrelated and of mean square one, so its
    weights are ranked by magnitude, and none compensates for another.
    """
    moments = statistics.moments
    starved = starved_problems(statistics)
    if moments.ndim == 2:
        filled = jnp.where(starved[:, None], jnp.ones_like(moments), moments)
    else:
        identity = jnp.eye(moments.shape[1], dtype=moments.dtype)[None]
        filled = jnp.where(starved[:, None, None], identity, moments)
    return replace(statistics, moments=filled)


@jax.jit
def _check_values(mean_square: Array) -> tuple[Array, Array]:
    """Returns whether all values are finite, and which problems are all zero."""
    return jnp.isfinite(mean_square).all(), (mean_square == 0).all(1)


def _statistics_of(
    path: str, shape: tuple[int, ...] | None, statistics: Any
) -> LeafStatistics:
    by_path = statistics if isinstance(statistics, Mapping) else {}
    leaf = by_path.get(path)
    if not isinstance(leaf, LeafStatistics):
        raise ValueError(
            f"there are no statistics of leaf {path!r} of shape {shape}: pass "
            "collect_statistics(fn, params, batches, plan=plan), with the same plan"
        )
    if leaf.columns.shape != shape:
        raise ValueError(
            f"the statistics of leaf {path!r} are for shape {leaf.columns.shape}, but "
            f"it has shape {shape}: collect them with these parameters"
        )
    return leaf


def warn_of_few_tokens(statistics: Mapping[str, LeafStatistics]) -> None:
    """Warns if weights would be fitted to fewer than four tokens for each input.

    Problems without tokens are not fitted.
    """
    fewest = jax.device_get({path: _fewest(s) for path, s in statistics.items()})
    too_few = {
        path: (float(tokens), statistics[path].columns.inputs_per_problem)
        for path, tokens in fewest.items()
        if tokens < 4 * statistics[path].columns.inputs_per_problem
    }
    if too_few:
        path, (tokens, inputs) = min(too_few.items(), key=lambda x: x[1][0] / x[1][1])
        warnings.warn(
            f"{len(too_few)} of {len(statistics)} leaves have fewer than four tokens "
            f"for each input: leaf {path!r} has {tokens:g} tokens for {inputs} inputs. "
            "Its weights will be overfitted to these tokens: use at least four times "
            "as many tokens as inputs",
            stacklevel=3,
        )


@jax.jit
def _fewest(statistics: LeafStatistics) -> Float32[Array, ""]:
    """Returns the fewest tokens of a problem that met some."""
    starved = starved_problems(statistics)
    return jnp.min(jnp.where(starved, jnp.inf, statistics.tokens))


def warn_of_starved(statistics: Mapping[str, LeafStatistics]) -> None:
    """Warns if some problems of a leaf, such as experts, met no tokens."""
    starved = jax.device_get(
        {path: starved_problems(leaf) for path, leaf in statistics.items()}
    )
    paths = [path for path, problems in starved.items() if problems.any()]
    if paths:
        problems = starved[paths[0]]
        numbers = ", ".join(map(str, np.flatnonzero(problems)[:8]))
        more = ", ..." if problems.sum() > 8 else ""
        warnings.warn(
            f"{len(paths)} of {len(statistics)} leaves have problems, such as experts, "
            f"that met no tokens: {int(problems.sum())} of {problems.size} of leaf "
            f"{paths[0]!r} ({numbers}{more}). Those are pruned by magnitude and not "
            "updated: use batches that reach them",
            stacklevel=3,
        )
