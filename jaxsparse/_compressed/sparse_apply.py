"""Runs a model on compressed weights, without a change to the model.

A compressed weight goes through the program as it is: through transpositions, casts and
whatever else moves elements or works on each alone, through calls and, layer by layer,
through scans. Where it meets its product it is multiplied by; where it meets anything
else, a branch of `cond` too, it is decompressed there.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxsparse._compressed.compressed_array import (
    as_dense_shapes,
    decompress,
    is_compressed,
)
from jaxsparse._compressed.lax_ops import dot_general, reshaped, transposed
from jaxsparse._compressed.matches_plan import plan_mismatch
from jaxsparse._compressed.nm_matmul import check_implementation
from jaxsparse._plans import Plan, PlanLike, plan_for
from jaxsparse._trace import (
    KEEPS_ZEROS,
    Cond,
    ControlFlow,
    Scan,
    ShardMap,
    Site,
    While,
    bind,
    control_flow,
    evaluate,
    run_equation,
    trace,
    var_shape,
)
from jaxsparse._trees import flatten, is_array


def sparse_apply(
    fn: Callable[..., Any],
    plan: PlanLike | None = None,
    *,
    implementation: str | None = None,
) -> Callable[..., Any]:
    """The same function of compressed parameters.

    Args:
      fn: any JAX function of the parameters; `fn(params, *args, **kwargs)`.
      plan: a plan, rules or a pattern that the compressed leaves have to obey, or None
        to take them as they are.
      implementation: of the products with compressed weights, as `nm_matmul` takes it.
        With `"xla"` the program has no call of a kernel, so `jax.export` takes it. With
        `"cuda"` no product that a compressed weight reaches is left to XLA; what meets
        it before, such as a slice, a factor or a branch of `cond`, decompresses it even
        so, and convolutions and lookups do.

    Returns:
      A function of parameters in which leaves may be `Compressed`, as
      `compress_params` makes them, and of the same further arguments. It gives what
      `fn` gives for the decompressed parameters, and is traceable like it, but
      derivatives in reverse mode only. A custom derivative rule of what takes a
      compressed weight is not kept; all others are.

    Raises:
      ValueError: an implementation that is unknown; when called: a compressed leaf that
        the plan does not prune so, or an implementation that a product cannot have.

    >>> from jaxsparse import compress_params
    >>> params = {"kernel": jnp.ones((64, 32)), "bias": jnp.ones(32)}
    >>> fn = lambda params, x: x @ params["kernel"] + params["bias"]
    >>> small = compress_params(params)
    >>> print(sparse_apply(fn)(small, jnp.ones((1, 64)))[0, :3])
    [33. 33. 33.]
    """
    check_implementation(implementation)

    def apply(params: PyTree, *args: Any, **kwargs: Any) -> Any:
        leaves, _ = flatten(params, is_leaf=is_compressed)
        shapes = as_dense_shapes(params)
        _check_compressed(leaves, None if plan is None else plan_for(shapes, plan))
        returned = []

        def flat(*arguments, **named):
            results, structure = jax.tree.flatten(fn(*arguments, **named))
            returned.append(structure)
            return [jnp.asarray(x) for x in results]

        program = trace(flat, shapes, args, kwargs)
        arrays = [leaf for leaf in leaves.values() if is_array(leaf)]
        rule = partial(_rule, implementation)
        outputs, _ = evaluate(program.bound, [*arrays, *program.inputs], rule)
        return returned[0].unflatten(map(_dense, outputs))

    return apply


def _dense(x: Any) -> Any:
    return decompress(x) if is_compressed(x) else x


def _check_compressed(leaves: Mapping[str, Any], plan: Plan | None) -> None:
    """Raises unless compressed leaves are as planned."""
    for path, leaf in leaves.items():
        if plan is None or not is_compressed(leaf):
            continue
        if fault := plan_mismatch(path, leaf, plan[path]):
            raise ValueError(fault)


def _rule(implementation: str | None, site: Site, inputs: list[Any], state: None):
    """Keeps weights compressed as long as that is possible."""
    again = partial(_rule, implementation)
    if not any(map(is_compressed, inputs)):
        return bind(site.eqn, inputs), state  # with its custom derivatives
    eqn, inside = site.eqn, control_flow(site.eqn)
    if inside is not None:
        return run_equation(site, _for_body(inside, inputs), again, state, _dense)
    name = eqn.primitive.name
    found = None
    if name == "dot_general":
        found = dot_general(eqn, inputs[0], inputs[1], implementation)
    elif name == "transpose":
        found = transposed(inputs[0], eqn.params["permutation"])
    elif name in _ELEMENTWISE:
        values = eqn.primitive.bind(inputs[0].values, **eqn.params)
        found = replace(inputs[0], values=values)
    elif name in _RESHAPES and _in_order(eqn):
        found = reshaped(inputs[0], var_shape(eqn.outvars[0]))
    if found is not None:
        return [found], state
    return run_equation(site, [_dense(x) for x in inputs], again, state)


#: Operations on single weights that keep zeros.
_ELEMENTWISE = KEEPS_ZEROS - {
    *("copy_p", "device_put", "mesh_cast", "optimization_barrier", "pbroadcast"),
    *("pcast", "pvary", "reshard", "sharding_constraint"),
}
_RESHAPES = frozenset(["broadcast_in_dim", "expand_dims", "reshape", "squeeze"])


def _in_order(eqn) -> bool:
    """Whether a reshape takes elements in row-major order, and shards as it likes."""
    permuted = eqn.primitive.name == "reshape" and eqn.params["dimensions"] is not None
    return not permuted and eqn.params.get("sharding") is None


def _for_body(inside: ControlFlow, inputs: list[Any]) -> list[Any]:
    """The operands of an equation that runs jaxprs, as far as they stay compressed."""
    match inside:
        case Scan(num_consts=consts, num_carry=carry):
            first = consts + carry
            each = [_dense(x) if _grouped_first(x) else x for x in inputs[first:]]
            return [*inputs[:consts], *map(_dense, inputs[consts:first]), *each]
        case While(num_condition=condition, num_body=body):
            first = condition + body
            return [*inputs[:first], *map(_dense, inputs[first:])]
        case Cond() | ShardMap():  # branches have to agree in what they return
            return [_dense(x) for x in inputs]
    return inputs


def _grouped_first(x: Any) -> bool:
    """Whether steps of a scan would cut groups."""
    return is_compressed(x) and x.axis == -x.ndim
