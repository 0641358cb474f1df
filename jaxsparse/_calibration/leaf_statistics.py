"""What calibration knows of a leaf, and whether it is what a plan needs."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from jaxsparse._calibration.matrices import LayerMatrices


#: What is known of the inputs: the mean square of each, or the mean product of every
#: two.
Statistic = Literal["mean_square", "second_moment"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["moments", "tokens"],
    meta_fields=["columns"],
)
@dataclass(frozen=True)
class LeafStatistics:
    """Statistics of the inputs of one leaf.

    A leaf has a problem for each expert, for each layer of a stack or for each feature
    group of a convolution; mostly that is one.

    Attributes:
      moments: float32 means over tokens, of the square of each input, `[problem,
        input]`, or of the product of every two, `[problem, input, input]`.
      tokens: float32, how many there were, by their weights, `[problem]`.
      columns: which axes of the leaf are inputs.
    """

    moments: Any  # trees of it may hold shapes or shardings as well
    tokens: Any
    columns: LayerMatrices

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


def match_statistics(
    shapes: Mapping[str, tuple[int, ...] | None], statistics: Any
) -> dict[str, LeafStatistics]:
    """The statistics of leaves by path, checked against their shapes.

    Raises:
      ValueError: there are none of a leaf, they are of another shape, not finite, or
        all zero.
    """
    matched = {path: _of(path, shape, statistics) for path, shape in shapes.items()}
    found = {path: _look_at(one.mean_square) for path, one in matched.items()}
    for path, (finite, zero) in jax.device_get(found).items():
        shape = matched[path].columns.shape
        if not finite:
            raise ValueError(
                f"the statistics of leaf {path!r} of shape {shape} are not finite"
            )
        if zero.any():
            number = int(np.argmax(zero))
            which = f" of its problem {number} of {zero.size}" if zero.size > 1 else ""
            raise ValueError(
                f"all inputs{which} of leaf {path!r} of shape {shape} were zero in "
                "every batch, so nothing is known of them: give batches that reach it, "
                "or keep it dense by a rule"
            )
    return matched


@jax.jit
def _look_at(mean_square: Array) -> tuple[Array, Array]:
    """Whether all of it is finite, and which problems are all zero."""
    return jnp.isfinite(mean_square).all(), (mean_square == 0).all(1)


def _of(path: str, shape: tuple[int, ...] | None, statistics: Any) -> LeafStatistics:
    known = statistics if isinstance(statistics, Mapping) else {}
    found = known.get(path)
    if not isinstance(found, LeafStatistics):
        raise ValueError(
            f"there are no statistics of leaf {path!r} of shape {shape}: give "
            "collect_statistics(fn, params, batches, plan=plan), of the same plan"
        )
    if found.columns.shape != shape:
        raise ValueError(
            f"the statistics of leaf {path!r} are of shape {found.columns.shape}, it "
            f"is of shape {shape}: collect them with these parameters"
        )
    return found


def check_updatable(path: str, weight: Any) -> None:
    """Raises unless a leaf can have other weights than its own.

    Raises:
      TypeError: its weights are no floats.
      ValueError: one of them is NaN or infinite, and would spread to others.
    """
    if not jnp.issubdtype(weight.dtype, jnp.floating):
        raise TypeError(
            f"leaf {path!r} of shape {weight.shape} has dtype {weight.dtype}: only "
            "weights that are floats can be updated"
        )
    if not jnp.isfinite(weight).all():
        raise ValueError(
            f"leaf {path!r} of shape {weight.shape} has weights that are not finite, "
            "which would spread to all that make up for them: mend them, or keep it "
            "dense by a rule"
        )


def warn_of_few_tokens(statistics: Mapping[str, LeafStatistics]) -> None:
    """Warns where weights would be fitted to fewer tokens than they have inputs."""
    seen = jax.device_get({path: jnp.min(s.tokens) for path, s in statistics.items()})
    few = {
        path: (float(tokens), statistics[path].columns.channels)
        for path, tokens in seen.items()
        if tokens < statistics[path].columns.channels
    }
    if few:
        path, (tokens, channels) = min(few.items(), key=lambda x: x[1][0] / x[1][1])
        warnings.warn(
            f"{len(few)} of {len(statistics)} leaves have fewer tokens than inputs: "
            f"leaf {path!r} has {tokens:g} tokens for {channels} inputs. Weights will "
            "be fitted to these tokens and to no others: give four times as many "
            "tokens as inputs, or more",
            stacklevel=3,
        )
