"""Which share of activations 2:4 drops, for `accelerate(..., activations=True)`."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsparse._compressed.activation_forms import masked_square
from jaxsparse._compressed.rectified import (
    rectified,
    takes_rectified,
    without_rectified,
)
from jaxsparse._trace import (
    Path,
    Program,
    Site,
    SquaredReLUs,
    bind,
    evaluate,
    find_squared_relus,
    run_equation,
    trace,
)
from jaxsparse._trees import PyTree


class DroppedActivations(NamedTuple):
    """What 2:4 drops of the activations of one product.

    Attributes:
      nonzero: the share of activations that are not zero.
      dropped: the share of these that is dropped.
      magnitude: the share of their sum that is dropped.
    """

    nonzero: Float[Array, ""]
    dropped: Float[Array, ""]
    magnitude: Float[Array, ""]


def dropped_activations(
    fn: Callable[..., Any], params: PyTree, *args: Any, **kwargs: Any
) -> dict[str, DroppedActivations]:
    """Returns what `accelerate(fn, ..., activations=True)` drops on one batch.

    Runs the function once, with activations dropped in every layer. Traceable, so put
    it under `jax.jit`, such as `jax.jit(partial(dropped_activations, fn))`.

    Args:
      fn: the function, as for `accelerate`.
      params: its parameters.
      *args: its further arguments.
      **kwargs: its further arguments by name.

    Returns:
      For each squared ReLU that is multiplied by a weight what is dropped, by the path
      of the weight. All layers of a scan, and all products with one weight, are counted
      together. Products with what is no parameter are called `"product 1"` and so on.
      Empty if there are none of a suitable shape and dtype.

    Raises:
      ValueError: the function computes gradients of squared ReLUs.

    >>> def fn(params, x):
    ...     return jnp.square(jnp.maximum(x, 0)) @ params["w"]
    >>> x = jnp.eye(16, dtype=jnp.bfloat16).at[0, 1:3].set(1)
    >>> shares = dropped_activations(fn, {"w": x}, x)["w"]
    >>> print(f"{shares.nonzero:.4f} {shares.dropped:.4f}")  # 18 of 256, 1 of 18
    0.0703 0.0556
    """
    program = trace(fn, params, args, kwargs)
    found = find_squared_relus(program.bound)
    names = _names(program, found)

    def rule(
        site: Site, inputs: list[Any], counts: dict[str, Array]
    ) -> tuple[Sequence[Any], dict[str, Array]]:
        if (result := rectified(found, site, inputs)) is not None:
            return [result], counts
        dense = without_rectified(inputs)
        if site.path not in names:
            inputs = inputs if takes_rectified(site.eqn) else dense
            return run_equation(site, inputs, rule, counts, _dense)
        operand, name = found.products[site.path], names[site.path]
        kept = masked_square(inputs[operand])
        counts = {**counts, name: counts[name] + _count(dense[operand], kept)}
        dense[operand] = kept
        return bind(site.eqn, dense), counts

    zeros = {name: jnp.zeros(5) for name in names.values()}
    _, counts = evaluate(
        program.bound, [*program.arrays.values(), *program.inputs], rule, zeros
    )
    return {name: _shares(count) for name, count in counts.items()}


def _names(program: Program, found: SquaredReLUs) -> dict[Path, str]:
    names = {}
    for i, (path, operand) in enumerate(found.products.items()):
        leaves = [
            contraction.view.leaf
            for contraction in program.record.contractions.get(path, ())
            if contraction.operand == 1 - operand
        ]
        names[path] = leaves[0] if len(leaves) == 1 else f"product {i + 1}"
    return names


def _dense(x: Any) -> Any:
    return without_rectified([x])[0]


def _count(x: Array, kept: Array) -> Float[Array, "5"]:
    """Returns the numbers of activations and of non-zero and dropped ones, and sums."""
    nonzero, wide = x != 0, x.astype(jnp.float32)
    dropped = nonzero & (kept == 0)
    numbers = [jnp.asarray(x.size), jnp.sum(nonzero), jnp.sum(dropped)]
    sums = [jnp.sum(wide), jnp.sum(wide, where=dropped)]
    return jnp.stack([n.astype(jnp.float32) for n in numbers] + sums)


def _shares(count: Float[Array, "5"]) -> DroppedActivations:
    size, nonzero, dropped, total, lost = count
    at_least_one = jnp.maximum(nonzero, 1)
    share = jnp.where(total > 0, lost / jnp.where(total > 0, total, 1), 0)
    return DroppedActivations(nonzero / size, dropped / at_least_one, share)
