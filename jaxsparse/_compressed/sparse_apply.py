"""Runs a model on compressed weights, without changes to the model.

A compressed weight stays compressed through transposes, casts and other operations that
only move elements or act elementwise and keep zeros, through calls and, layer by layer,
through scans. Matmuls with it use `nm_matmul`. Any other operation, and a branch of
`cond`, decompresses it first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from jax.extend.core import JaxprEqn

from jaxsparse._compressed.check_arrays import require_fitting_arrays
from jaxsparse._compressed.compressed_array import (
    Compressed,
    as_dense_shapes,
    decompress,
    dequantize,
    is_compressed,
)
from jaxsparse._compressed.dot_general import MatmulOptions, dot_generals
from jaxsparse._compressed.eight_bits import is_wide_float
from jaxsparse._compressed.lax_ops import (
    repeat_scales,
    reshape,
    reshapes_row_major,
    transpose,
)
from jaxsparse._compressed.matches_plan import plan_mismatch
from jaxsparse._compressed.nm_matmul import Implementation, check_implementation
from jaxsparse._plans import Plan, PlanLike, plan_for
from jaxsparse._trace import (
    KEEPS_ZEROS,
    Cond,
    ControlFlow,
    JointProducts,
    Scan,
    ShardMap,
    Site,
    While,
    bind,
    control_flow,
    evaluate,
    join_products,
    join_products_inside,
    joint_products,
    run_equation,
    split_results,
    trace,
    var_shape,
)
from jaxsparse._trees import PyTree, change_variables, flatten, is_array, with_changes


def sparse_apply(
    fn: Callable[..., Any],
    plan: PlanLike | None = None,
    *,
    implementation: Implementation | None = None,
    quantize_activations: bool = False,
) -> Callable[..., Any]:
    """Returns `fn` as a function of compressed parameters.

    Args:
      fn: any JAX function of the parameters: `fn(params, *args, **kwargs)`.
      plan: a plan, rules or a pattern that the compressed leaves must match, or None to
        accept them without a check.
      implementation: the implementation of matmuls with compressed weights, as in
        `nm_matmul`. With `"cuda"` a matmul whose operand is still compressed raises if
        the kernel does not support it. An operation before the matmul, such as a slice,
        a factor or a branch of `cond`, still decompresses the weight, and so do
        convolutions and embedding lookups.
      quantize_activations: whether to quantize the rows of activations that are
        multiplied by compressed weights, as in `nm_matmul`. All of these weights must
        be quantized. A matmul whose operand is still compressed raises if it cannot be
        computed that way; the operations that decompress are as above.

    Returns:
      A function of parameters whose leaves may be `Compressed`, as returned by
      `compress_params`, and of the other arguments of `fn`. It returns the result of
      `fn` for the decompressed parameters. It is traceable like `fn`, but
      differentiable in reverse mode only. Custom derivative rules of functions that
      take a compressed weight are ignored; all others are kept. Variables of NNX that
      `fn` changes, such as caches, change as they do in a call of `fn`.

    Raises:
      ValueError: the implementation is unknown. When called: a compressed leaf does not
        match the plan, its arrays do not fit each other, the implementation or
        quantized activations are not available for a matmul, or `fn` changes a variable
        of NNX that the arguments hold more than once.

    >>> import jax.numpy as jnp
    >>> from jaxsparse import compress_params
    >>> params = {"kernel": jnp.ones((64, 32)), "bias": jnp.ones(32)}
    >>> fn = lambda params, x: x @ params["kernel"] + params["bias"]
    >>> small = compress_params(params)
    >>> print(sparse_apply(fn)(small, jnp.ones((1, 64)))[0, :3])
    [33. 33. 33.]
    """
    check_implementation(implementation)
    options = MatmulOptions(implementation, quantize_activations)
    fn_with_changes = with_changes(fn)

    def apply(params: PyTree, *args: Any, **kwargs: Any) -> Any:
        leaves = flatten(params, is_leaf=is_compressed).by_path
        shapes = as_dense_shapes(params)
        _check_compressed(leaves, None if plan is None else plan_for(shapes, plan))
        arrays_of, complete = split_results(fn_with_changes)
        program = trace(arrays_of, shapes, args, kwargs)
        arrays = [leaf for leaf in leaves.values() if is_array(leaf)]
        rule = partial(_rule, options)
        bound = join_products(program.bound)
        outputs, _ = evaluate(bound, [*arrays, *program.inputs], rule)
        result, changes = complete(map(_dense, outputs))
        change_variables(changes, params, *args, **kwargs)
        return result

    return apply


def _dense(x: Any) -> Any:
    return decompress(x) if is_compressed(x) else x


def _check_compressed(leaves: Mapping[str, Any], plan: Plan | None) -> None:
    """Raises `ValueError` if a compressed leaf is damaged or not as planned."""
    for path, leaf in leaves.items():
        if not is_compressed(leaf):
            continue
        require_fitting_arrays(leaf, f"leaf {path!r}")
        if plan is not None and (mismatch := plan_mismatch(path, leaf, plan[path])):
            raise ValueError(mismatch)


def _rule(
    options: MatmulOptions, site: Site, inputs: list[Any], state: None
) -> tuple[Sequence[Any], None]:
    """Keeps weights compressed as long as that is possible."""
    rule = partial(_rule, options)
    if (joint := joint_products(site.eqn)) is not None:
        return _multiply(joint, inputs, options), state
    if not any(map(is_compressed, inputs)):
        return bind(site.eqn, inputs), state  # keeps custom derivative rules
    flow = control_flow(site.eqn)
    if flow is not None:
        site = site._replace(eqn=join_products_inside(site.eqn))
        return run_equation(site, _body_inputs(flow, inputs), rule, state, _dense)
    output = _apply_compressed(site.eqn, inputs, options)
    if output is not None:
        return [output], state
    return run_equation(site, [_dense(x) for x in inputs], rule, state)


def _multiply(
    joint: JointProducts, inputs: list[Any], options: MatmulOptions
) -> list[Any]:
    """Returns the products, those by compressed weights in one launch if possible."""
    pairs = joint.split(inputs)
    sparse = [i for i, pair in enumerate(pairs) if any(map(is_compressed, pair))]
    products = dot_generals(
        [joint.eqns[i] for i in sparse],
        [pairs[i] for i in sparse],
        options,
    )
    outputs = dict(zip(sparse, products, strict=True))

    def output(i: int) -> Any:
        if (product := outputs.get(i)) is not None:
            return product
        return bind(joint.eqns[i], [_dense(x) for x in pairs[i]])[0]

    return [output(i) for i in range(len(pairs))]


def _apply_compressed(eqn: JaxprEqn, inputs: list[Any], options: MatmulOptions) -> Any:
    """Returns the output of an equation, or None if it needs dense inputs."""
    name = eqn.primitive.name
    if name == "dot_general":
        return dot_generals([eqn], [inputs], options)[0]
    if name == "transpose":
        return transpose(inputs[0], eqn.params["permutation"])
    if name in _ELEMENTWISE:
        return _apply_elementwise(eqn, inputs[0])
    if reshapes_row_major(eqn):
        return reshape(inputs[0], var_shape(eqn.outvars[0]))
    return None


def _apply_elementwise(eqn: JaxprEqn, weight: Compressed) -> Compressed:
    """Applies an operation to the values; a cast leaves those of eight bits."""
    is_cast = weight.is_quantized and eqn.primitive.name == "convert_element_type"
    if is_cast and is_wide_float(dtype := eqn.params["new_dtype"]):
        return replace(weight, quantized_from=dtype)
    weight = dequantize(weight)
    values = eqn.primitive.bind(weight.values, **eqn.params)
    return replace(weight, values=values)


#: Elementwise operations of one operand that keep zeros.
_ELEMENTWISE = KEEPS_ZEROS - {
    *("copy_p", "device_put", "mesh_cast", "optimization_barrier", "pbroadcast"),
    *("pcast", "pvary", "reshard", "sharding_constraint"),
}


def _body_inputs(flow: ControlFlow, inputs: list[Any]) -> list[Any]:
    """Returns the inputs of an equation with bodies; decompresses where necessary."""
    match flow:
        case Scan(num_consts=num_consts, num_carry=num_carry):
            start = num_consts + num_carry
            carry, xs = inputs[num_consts:start], inputs[start:]
            return [*inputs[:num_consts], *map(_dense, carry), *map(_scannable, xs)]
        case While(num_condition=num_condition, num_body=num_body):
            start = num_condition + num_body
            return [*inputs[:start], *map(_dense, inputs[start:])]
        case Cond() | ShardMap():  # all branches must return the same types
            return [_dense(x) for x in inputs]
    return inputs


def _scannable(x: Any) -> Any:
    """Returns `x` with the scanned axis in all of its arrays and no group split."""
    if not is_compressed(x):
        return x
    if x.axis == -x.ndim:
        return decompress(x)
    return repeat_scales(x, 1)
