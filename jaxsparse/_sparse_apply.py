"""Runs a model on compressed weights, without a change to the model.

A compressed weight goes through the program as it is: through transpositions, casts and
whatever else moves elements or works on each alone, through calls and, layer by layer,
through scans. Where it meets its product it is multiplied by; where it meets anything
else, a branch of `cond` too, it is decompressed there.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxsparse._compress import (
    Compressed,
    compressed_shapes,
    decompress,
    is_compressed,
)
from jaxsparse._evaluate import Site, bind, evaluate, run_site
from jaxsparse._group_code import code_bits
from jaxsparse._interpreter import (
    Cond,
    Scan,
    ShardMap,
    Structure,
    While,
    structure,
)
from jaxsparse._nm_matmul import nm_matmul
from jaxsparse._paths import flatten, is_array
from jaxsparse._plan import Plan, PlanLike, plan_for
from jaxsparse._program import trace
from jaxsparse._shown import KEEPS_ZEROS
from jaxsparse._stored_as_planned import stand_ins, storage_fault


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
        With `"xla"` the program has no call of a kernel, so `jax.export` takes it.

    Returns:
      A function of parameters in which leaves may be `Compressed`, as
      `compress_params` makes them, and of the same further arguments. It gives what
      `fn` gives for the decompressed parameters, and is traceable like it, but
      derivatives in reverse mode only. A custom derivative rule of what takes a
      compressed weight is not kept; all others are.

    Raises:
      ValueError: when called: a compressed leaf that the plan does not prune so, or an
        implementation that is unknown or cannot be had for a product.

    >>> from jaxsparse import compress_params
    >>> params = {"kernel": jnp.ones((64, 32)), "bias": jnp.ones(32)}
    >>> fn = lambda params, x: x @ params["kernel"] + params["bias"]
    >>> small = compress_params(params)
    >>> print(sparse_apply(fn)(small, jnp.ones((1, 64)))[0, :3])
    [33. 33. 33.]
    """

    def apply(params: PyTree, *args: Any, **kwargs: Any) -> Any:
        leaves, _ = flatten(params, is_leaf=is_compressed)
        shapes = stand_ins(params)
        _check(leaves, None if plan is None else plan_for(shapes, plan))
        returned = []

        def flat(*arguments, **named):
            results, structure = jax.tree.flatten(fn(*arguments, **named))
            returned.append(structure)
            return [jnp.asarray(x) for x in results]

        program = trace(flat, shapes, args, kwargs)
        arrays = [leaf for leaf in leaves.values() if is_array(leaf)]
        rule = partial(_rule, implementation)
        outputs, _ = evaluate(program.inner, [*arrays, *program.inputs], rule)
        return returned[0].unflatten(map(_dense, outputs))

    return apply


def _dense(x: Any) -> Any:
    return decompress(x) if is_compressed(x) else x


def _check(leaves: Mapping[str, Any], plan: Plan | None) -> None:
    """Raises unless compressed leaves are as planned."""
    for path, leaf in leaves.items():
        if plan is None or not is_compressed(leaf):
            continue
        if fault := storage_fault(path, leaf, plan[path]):
            raise ValueError(fault)


def _rule(implementation: str | None, site: Site, inputs: list[Any], state: None):
    """Keeps weights compressed as long as that is possible."""
    again = partial(_rule, implementation)
    if not any(map(is_compressed, inputs)):
        return bind(site.eqn, inputs), state  # with its custom derivatives
    eqn, inside = site.eqn, structure(site.eqn)
    if inside is not None:
        return run_site(site, _for_body(inside, inputs), again, state, _dense)
    name = eqn.primitive.name
    found = None
    if name == "dot_general":
        left, right = inputs
        found = _product(eqn, left, right, implementation)
    elif name == "transpose":
        found = _transposed(inputs[0], eqn.params["permutation"])
    elif name in _ELEMENTWISE:
        values = eqn.primitive.bind(inputs[0].values, **eqn.params)
        found = replace(inputs[0], values=values)
    elif name in _RESHAPES and _in_order(eqn):
        found = _reshaped(inputs[0], eqn.outvars[0].aval.shape)
    if found is not None:
        return [found], state
    return run_site(site, [_dense(x) for x in inputs], again, state)


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


def _for_body(inside: Structure, inputs: list[Any]) -> list[Any]:
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


def _transposed(weight: Compressed, order: Sequence[int]) -> Compressed:
    axis = list(order).index(weight.axis + weight.ndim) - weight.ndim
    values, indices = weight.values.transpose(order), weight.indices.transpose(order)
    return Compressed(values, indices, weight.pattern, axis)


def _reshaped(weight: Compressed, shape: tuple[int, ...]) -> Compressed | None:
    """The weight in another shape, if its groups stay whole and codes whole bytes."""
    old, pattern = weight.shape, weight.pattern
    behind = math.prod(old[weight.axis + weight.ndim + 1 :])
    fits = [
        i
        for i, size in enumerate(shape)
        if size > 1 and math.prod(shape[i + 1 :]) == behind
    ]
    if math.prod(shape) != math.prod(old) or not fits:
        return None
    axis, bits = fits[0], code_bits(pattern)
    sizes = old[weight.axis], shape[axis]
    whole = all(size % pattern.m == 0 for size in sizes)
    if not whole or any(size // pattern.m * bits % 8 for size in sizes):
        return None
    values, indices = compressed_shapes(shape, pattern, axis)
    return Compressed(
        weight.values.reshape(values),
        weight.indices.reshape(indices),
        pattern,
        axis - len(shape),
    )


def _product(eqn, left: Any, right: Any, implementation: str | None) -> Array | None:
    """The product with a compressed matrix; None where it is of another kind."""
    (contracted, batch), params = eqn.params["dimension_numbers"], eqn.params
    operand = 1 if is_compressed(right) else 0
    operands: tuple[Any, Any] = (right, left) if operand else (left, right)
    weight, x = operands
    mine, others = contracted[operand], contracted[1 - operand]
    free = params["precision"] is None and params["out_sharding"] is None
    plain = free and x.dtype == weight.dtype
    # Products of narrow integers would come back wider.
    wide = jnp.issubdtype(x.dtype, jnp.floating) or x.dtype.itemsize >= 4
    same = wide and x.dtype == eqn.outvars[0].aval.dtype
    if batch[0] or weight.ndim != 2 or not (plain and same) or is_compressed(x):
        return None
    if tuple(mine) != (weight.axis + 2,):
        return None
    matrix = weight if weight.axis == -2 else _transposed(weight, (1, 0))
    rows = jnp.moveaxis(x, others[0], -1)
    product = nm_matmul(rows, matrix, implementation=implementation)
    return product if operand else jnp.moveaxis(product, -1, 0)
