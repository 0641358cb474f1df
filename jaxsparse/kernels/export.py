"""Exported programs run on other machines, so no kernel of this one is part of them.

Whether a program is exported is known when it is lowered, not when it is traced.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir
from jax.typing import ArrayLike
from jaxtyping import Array


_Fn = Callable[..., Any]


def unless_exported(kernel: _Fn, portable: _Fn, *operands: ArrayLike) -> Any:
    """Returns `kernel(*operands)`, or `portable(*operands)` in an exported program.

    Args:
      kernel: a function for the GPUs of this machine; returns a tree of arrays.
      portable: a function of the same results for any device.
      *operands: arrays.
    """
    # As jaxprs: JAX looks in them for primitives that need to know the devices.
    kernel_jaxpr = jax.make_jaxpr(kernel)(*operands)
    portable_jaxpr, shapes = jax.make_jaxpr(portable, return_shape=True)(*operands)
    results = _choice.bind(*operands, kernel=kernel_jaxpr, portable=portable_jaxpr)
    return jax.tree.unflatten(jax.tree.structure(shapes), results)


def kernel_on_gpu(
    kernel: _Fn, portable: _Fn, *operands: ArrayLike, exported: bool = False
) -> Any:
    """Returns `kernel(*operands)` on NVIDIA's GPUs, elsewhere `portable(*operands)`.

    Args:
      kernel: as in `unless_exported`.
      portable: as in `unless_exported`.
      *operands: arrays.
      exported: whether a program that is exported uses the kernel too.
    """
    if not exported:
        kernel = partial(unless_exported, kernel, portable)
    return lax.platform_dependent(*operands, cuda=kernel, default=portable)


_choice = Primitive("unless_exported")
_choice.multiple_results = True


@_choice.def_impl
def _run(*operands: ArrayLike, **jaxprs: ClosedJaxpr) -> list[Array]:
    return jax.jit(partial(_choice.bind, **jaxprs))(*operands)


@_choice.def_abstract_eval
def _types(*_: Any, portable: ClosedJaxpr, **__: ClosedJaxpr) -> Sequence[Any]:
    return portable.out_avals


def _batch(
    operands: Sequence[ArrayLike],
    axes: Sequence[int | None],
    *,
    kernel: ClosedJaxpr,
    portable: ClosedJaxpr,
) -> tuple[list[Array], list[int]]:
    def each(jaxpr: ClosedJaxpr) -> _Fn:
        return jax.vmap(jaxpr_as_fun(jaxpr), in_axes=tuple(axes))

    results = unless_exported(each(kernel), each(portable), *operands)
    return results, [0] * len(results)


def _lower(
    context: mlir.LoweringRuleContext,
    *operands: Any,
    kernel: ClosedJaxpr,
    portable: ClosedJaxpr,
) -> Any:
    exported = context.module_context.lowering_parameters.for_export
    fn = jaxpr_as_fun(portable if exported else kernel)
    return mlir.lower_fun(fn, multiple_results=True)(context, *operands)


batching.primitive_batchers[_choice] = _batch
mlir.register_lowering(_choice, _lower)
