"""Exported programs run on other machines, so no kernel of this one is part of them.

Whether a program is exported is known when it is lowered, not when it is traced.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.core
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.typing import ArrayLike
from jaxtyping import Array


_Fn = Callable[..., Array]


def unless_exported(kernel: _Fn, portable: _Fn, *operands: ArrayLike) -> Array:
    """Returns `kernel(*operands)`, or `portable(*operands)` in an exported program.

    Args:
      kernel: a function for the GPUs of this machine.
      portable: a function of the same results for any device.
      *operands: arrays.
    """
    return _choice.bind(*operands, kernel=kernel, portable=portable)


_choice = Primitive("unless_exported")


@_choice.def_impl
def _run(*operands: ArrayLike, kernel: _Fn, portable: _Fn) -> Array:
    return jax.jit(partial(unless_exported, kernel, portable))(*operands)


@_choice.def_abstract_eval
def _shape(*operands: Any, portable: _Fn, **_: _Fn) -> jax.core.ShapedArray:
    result = jax.eval_shape(portable, *operands)
    return jax.core.ShapedArray(result.shape, result.dtype)


def _batch(
    operands: Sequence[Array],
    axes: Sequence[int | None],
    *,
    kernel: _Fn,
    portable: _Fn,
) -> tuple[Array, int]:
    each = partial(jax.vmap, in_axes=tuple(axes))
    return unless_exported(each(kernel), each(portable), *operands), 0


def _lower(
    context: mlir.LoweringRuleContext, *operands: Any, kernel: _Fn, portable: _Fn
) -> Any:
    exported = context.module_context.lowering_parameters.for_export
    lower = mlir.lower_fun(portable if exported else kernel, multiple_results=False)
    return lower(context, *operands)


batching.primitive_batchers[_choice] = _batch
mlir.register_lowering(_choice, _lower)
