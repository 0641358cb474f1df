"""How a program runs when compressed forms go beside its dense weights."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn
from jaxtyping import Array

from jaxsparse._compressed import accelerated_weight as moves
from jaxsparse._compressed.accelerated_choice import FormUse
from jaxsparse._compressed.accelerated_product import (
    PRODUCT,
    accelerated_product,
    record_uses,
    with_square,
)
from jaxsparse._compressed.accelerated_weight import (
    Accelerated,
    Form,
    as_dense,
    is_accelerated,
    with_dense,
)
from jaxsparse._compressed.activation_forms import masked_square
from jaxsparse._compressed.lax_ops import reshapes_row_major
from jaxsparse._compressed.nm_matmul import Implementation
from jaxsparse._compressed.rectified import (
    Rectified,
    rectified,
    takes_rectified,
    without_rectified,
)
from jaxsparse._trace import (
    CHECKPOINTS,
    NO_SQUARED_RELUS,
    Call,
    Scan,
    ShardMap,
    Site,
    SquaredReLUs,
    bind,
    control_flow,
    run_equation,
    var_shape,
)


class Acceleration(NamedTuple):
    """How a program is accelerated.

    Attributes:
      implementation: as in `accelerate`.
      uses: the forms of weights that products use are added to it, instead of being
        used; or None.
      activations: the products whose activations are masked.
      dense: whether these activations are masked only, and nothing is compressed.
    """

    implementation: Implementation | None
    uses: set[FormUse] | None
    activations: SquaredReLUs
    dense: bool = False


def accelerated_rule(
    how: Acceleration, site: Site, inputs: list[Any], state: None
) -> tuple[Sequence[Any], None]:
    """Takes compressed forms along, and uses them in products: a rule of `evaluate`.

    Args:
      how: what is compressed, and used.
      site: the equation.
      inputs: its inputs.
      state: nothing.
    """
    rule = partial(accelerated_rule, how)
    eqn = site.eqn
    if eqn.primitive.name == "dot_general":
        return [_run_product(how, site, inputs)], state
    plain = [x.dense if is_accelerated(x) else x for x in inputs]
    if (result := rectified(how.activations, site, plain)) is not None:
        return [result], state
    if not takes_rectified(eqn):
        inputs = without_rectified(inputs)
    carries = any(isinstance(x, Accelerated | Rectified) for x in inputs)
    if not carries and not how.activations.inside(site.path):
        return bind(eqn, inputs), state
    dense = [*map(as_dense, inputs)]
    if eqn.primitive.name in _KEEP_WEIGHTS:
        outputs = zip(inputs, bind(eqn, dense), strict=True)
        return [with_dense(x, y) for x, y in outputs], state
    if (move := _move_of(eqn, dense)) is not None:
        (moved,) = bind(eqn, dense)
        return [moves.map_forms(inputs[0], moved, move)], state
    match control_flow(eqn):
        case None | ShardMap():
            return bind(eqn, dense), state
        case Call() if eqn.primitive.name in CHECKPOINTS:
            return _run_checkpoint(site, inputs, rule), state
        case Call() if eqn.primitive.name.startswith("custom_"):
            return bind(eqn, dense), state  # keeps the rule of derivatives
        case Scan(num_consts=num_consts, num_carry=num_carry):
            start = num_consts + num_carry
            scanned = map(_scannable, inputs[start:])
            inputs = [*inputs[:num_consts], *dense[num_consts:start], *scanned]
            return run_equation(site, inputs, rule, state, as_dense)
    return run_equation(site, inputs, rule, state, as_dense)


def _run_product(how: Acceleration, site: Site, inputs: Sequence[Any]) -> Array:
    eqn, implementation = site.eqn, how.implementation
    # Gradients are other programs, in which paths mean nothing.
    rule = partial(accelerated_rule, how._replace(activations=NO_SQUARED_RELUS))
    position = how.activations.products.get(site.path)
    sparse_gradient = site.path in how.activations.sources
    if how.dense or not (
        any(map(is_accelerated, inputs)) or position is not None or sparse_gradient
    ):
        dense = [*map(as_dense, inputs)]
        if position is not None:
            dense[position] = masked_square(inputs[position])
        return bind(eqn, dense)[0]
    options = {"sparse_gradient": sparse_gradient}
    if how.uses is not None:
        return record_uses(eqn, inputs, implementation, how.uses, position, **options)
    if position is not None:
        inputs = with_square(eqn, inputs, position, implementation)
    options["in_loop"] = bool(site.steps)
    return accelerated_product(eqn, inputs, implementation, rule, **options)


_KEEP_WEIGHTS = frozenset(
    ["copy", "copy_p", "name", "optimization_barrier", "sharding_constraint"]
)


def _move_of(
    eqn: JaxprEqn, inputs: Sequence[Any]
) -> Callable[[Form], Form | None] | None:
    """Returns what an equation that moves or casts weights does with a form, or None.

    Args:
      eqn: the equation.
      inputs: its inputs as arrays.
    """
    if not eqn.outvars:  # such as a debug print
        return None
    shape = var_shape(eqn.outvars[0])
    match eqn.primitive.name, eqn.params:
        case "transpose", {"permutation": permutation}:
            return partial(moves.transpose_form, permutation=permutation)
        case "convert_element_type", {"new_dtype": dtype}:
            is_float = jnp.issubdtype(dtype, jnp.floating)
            return partial(moves.cast_form, dtype=dtype) if is_float else None
        case "slice", {"start_indices": starts, "strides": None}:
            return partial(moves.slice_form, starts=starts, sizes=shape)
        case "dynamic_slice", _:
            return partial(moves.slice_form, starts=inputs[1:], sizes=shape)
    keeps_size = math.prod(var_shape(eqn.invars[0])) == math.prod(shape)
    if reshapes_row_major(eqn) and keeps_size:
        return partial(moves.reshape_form, shape=shape)
    return None


def _scannable(x: Any) -> Any:
    if not is_accelerated(x):
        return x
    return moves.map_forms(x, x.dense, moves.scannable_form)


def _run_checkpoint(site: Site, inputs: Sequence[Any], rule: Any) -> Sequence[Any]:
    """Runs what `jax.checkpoint` wraps, whose intermediate values are not saved."""
    params = site.eqn.params
    prevent_cse = params["prevent_cse"]  # for all inputs, or for each

    def run(*inputs: Any) -> Sequence[Any]:
        return [*map(as_dense, run_equation(site, inputs, rule, None)[0])]

    if not params["differentiated"]:
        policy = params["policy"] and partial(_saves, params["policy"])
        return jax.checkpoint(run, prevent_cse=prevent_cse, policy=policy)(*inputs)
    if prevent_cse is True or (prevent_cse and any(prevent_cse)):
        # This is part of a gradient: XLA must compute the values again.
        inputs = lax.optimization_barrier(inputs)
    return run(*inputs)


def _saves(policy: Callable[..., Any], primitive: Any, *types: Any, **params: Any):
    """Returns what a policy of `jax.checkpoint` decides; products are `dot_general`."""
    if primitive.name == "name" and params["name"] == PRODUCT:
        primitive, params = lax.dot_general_p, {"dimension_numbers": _NO_AXES}
    return policy(primitive, *types, **params)


#: No batch axes: products on compressed weights have none.
_NO_AXES = (((), ()), ((), ()))
