"""Whether a function gives the same outputs with rearranged parameters."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse._trace import (
    BoundJaxpr,
    NotAlikeError,
    evaluate,
    graph_of,
    inline_calls,
    keep_equation,
    program_key,
    trace,
)
from jaxsparse._trees import PyTree, is_abstract


class Outputs(NamedTuple):
    """The outputs of a function for some parameters.

    Attributes:
      of: a function of the leaves by path, compiled once for all functions that are
        the same program, such as the blocks of a network; it returns the outputs.
      rounding: relative differences up to this one are those of rounding: half of the
        digits of the narrowest dtype that the function computes in.
    """

    of: Callable[[Mapping[str, Any]], list[np.ndarray]]
    rounding: float


def outputs_of(fn: Callable[..., Any], params: PyTree, args: Sequence[Any]) -> Outputs:
    """Returns the outputs of `fn(params, *args)` as a function of the parameters.

    Raises:
      TypeError: an argument is abstract, so that the function can't run.
      ValueError: the function returns no floats.
    """
    for leaf in jax.tree.leaves(args):
        if is_abstract(leaf):
            raise TypeError(
                f"args hold a {type(leaf).__name__} of shape {leaf.shape}, and the "
                "function is run to verify the result: give arrays"
            )
    precise = jax.default_matmul_precision("highest")
    with precise:
        program = inline_calls(trace(fn, params, args))
    run, consts = _compiled(program.bound), list(program.bound.consts)

    def outputs(leaves: Mapping[str, Any]) -> list[np.ndarray]:
        arrays = [leaves[path] for path in program.arrays]
        with precise:
            results = run(consts, [*arrays, *program.inputs])
        if not results:
            raise ValueError(
                "fn returns no floats, by which the result could be verified: let it "
                "return what it computes, such as logits or a loss"
            )
        return [np.asarray(x) for x in results]

    dtypes = {value.dtype for value in graph_of(program.bound).values}
    floats = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    epsilon = max((float(jnp.finfo(dtype).eps) for dtype in floats), default=0.0)
    return Outputs(outputs, epsilon**0.5 / 2)


@dataclass(frozen=True)
class _Compilable:
    """What a program is compiled from. It holds no arrays.

    Attributes:
      key: equal for programs that compute the same; None for one that can't be
        compared.
      jaxpr: one of them.
    """

    key: Hashable
    jaxpr: Any = field(compare=False)


def _compiled(bound: BoundJaxpr) -> Callable[..., list[Any]]:
    """Returns the compiled program, the same for all that compute the same."""
    try:
        return _compile_alike(_Compilable(program_key(bound), bound.jaxpr))
    except NotAlikeError:
        return _compile(_Compilable(None, bound.jaxpr))


def _compile(compilable: _Compilable) -> Callable[..., list[Any]]:
    @jax.jit
    def run(consts: list[Any], inputs: list[Any]) -> list[Any]:
        bound = BoundJaxpr(compilable.jaxpr, consts)
        outputs, _ = evaluate(bound, inputs, keep_equation)
        return [x for x in outputs if jnp.issubdtype(x.dtype, jnp.inexact)]

    return run


_compile_alike = lru_cache(maxsize=64)(_compile)


def relative_difference(
    before: Sequence[np.ndarray], after: Sequence[np.ndarray]
) -> float:
    """Returns the largest of `norm(before - after) / norm(before)` of all outputs.

    Values that are not finite must be the same.
    """
    return max(map(_relative_difference, before, after))


def _relative_difference(before: np.ndarray, after: np.ndarray) -> float:
    wide = np.complex128 if np.iscomplexobj(before) else np.float64
    x, y = before.astype(wide), after.astype(wide)
    finite = np.isfinite(x)
    if not np.array_equal(x[~finite], y[~finite], equal_nan=True):
        return np.inf
    difference = np.linalg.norm(x[finite] - y[finite])
    size = np.linalg.norm(x[finite])
    if difference == 0:
        return 0.0
    return float(difference / size) if size > 0 and np.isfinite(difference) else np.inf
