"""Trains on compressed weights: the same function of dense parameters, but faster.

The program runs on dense weights. Beside each planned one go its compressed forms, made
once, before the first equation. Transposes, reshapes and casts take them along, through
calls, `checkpoint` and, layer by layer, scans; a product with the weight runs on them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn

from jaxsparse._compressed import accelerated_weight as moves
from jaxsparse._compressed.accelerated_product import FormUse, accelerated_product
from jaxsparse._compressed.accelerated_weight import (
    Accelerated,
    Form,
    as_dense,
    is_accelerated,
    with_dense,
)
from jaxsparse._compressed.lax_ops import reshapes_row_major
from jaxsparse._compressed.leaf_forms import check_zeros, form_axes, make_forms
from jaxsparse._compressed.nm_matmul import check_implementation
from jaxsparse._masks import match_masks
from jaxsparse._plans import LeafPlan, PlanLike, plan_for_leaves, plan_or_rules
from jaxsparse._trace import (
    Call,
    Program,
    Scan,
    ShardMap,
    Site,
    bind,
    control_flow,
    evaluate,
    run_equation,
    trace,
)
from jaxsparse._trees import PyTree, flatten, is_array
from jaxsparse.kernels import cuda_target


def accelerate(
    fn: Callable[..., Any],
    plan: PlanLike,
    *,
    masks: PyTree | None = None,
    implementation: str | None = None,
) -> Callable[..., Any]:
    """Returns `fn` with the products of its sparse weights on sparse tensor cores.

    A function of the same dense parameters, to be differentiated and trained as before.
    A product with a planned weight runs on the compressed weight if the plan's groups
    lie along an axis that it sums over. So does the gradient of its other operand if
    the plan is transposable, such as `NM(2, 4, transposable=True)`: it multiplies by
    the transposed weight. The gradient of the weight is the dense product.

    Each weight is compressed once a call, in the dtype of the products, outside of
    loops and `jax.checkpoint`. So put a loop over the parts of a batch inside: in
    `accelerate(jax.grad(loss), plan)`, or in `fn` around the gradient, all products of
    the backward pass are accelerated as well.

    Args:
      fn: any JAX function of the parameters: `fn(params, *args, **kwargs)`, such as a
        loss, or its gradient.
      plan: the plan, rules or a pattern that the parameters obey: what it prunes is
        zero, as after each step of `wrap_optimizer`. Patterns other than n:m in groups
        of 4, 8 or 16 are not accelerated.
      masks: a tree of masks, bool or packed, such as `get_masks(state)`. The default is
        the weights that are not zero.
      implementation: the implementation of products, as in `nm_matmul`. By default a
        product that `"cuda"` does not support stays as it is, and on devices without
        the kernel the function is `fn` itself. `"xla"` also runs on compressed weights
        elsewhere, which saves no time. With `"cuda"` a product along the groups of a
        planned weight raises if the kernel does not support it. Weights that `fn`
        changes before their product, other than by a transpose, reshape or cast, stay
        dense, and so do products inside `shard_map` and functions with derivative rules
        of their own.

    Returns:
      A function with the parameters, arguments and results of `fn`. It is traceable
      like `fn`, but differentiable in reverse mode only. Values that the compressed
      weights do not hold have no effect: if a traced weight has more than `n` weights
      in a group, products take the first `n`.

    Raises:
      ValueError: the implementation is unknown. When called: the plan or the masks do
        not fit the parameters; a concrete weight, or its mask, has more than `n`
        weights in a group; or the implementation is not available for a product.

    >>> from jaxsparse import NM, Rule, create_masks, mask_params
    >>> loss = lambda params, x: jnp.sum((x @ params["w"]) ** 2)
    >>> plan = [Rule("w", NM(2, 4, transposable=True), axis=0)]
    >>> params = {"w": jnp.arange(256.0).reshape(16, 16)}
    >>> params = mask_params(params, create_masks(params, plan))
    >>> fast = accelerate(loss, plan, implementation="xla")
    >>> gradient = jax.jit(jax.grad(fast))(params, jnp.ones((2, 16)))["w"]
    >>> bool(jnp.all(gradient == jax.grad(loss)(params, jnp.ones((2, 16)))["w"]))
    True
    """
    check_implementation(implementation)
    plan = plan_or_rules(plan)

    def apply(params: PyTree, *args: Any, **kwargs: Any) -> Any:
        leaves = flatten(params).by_path
        planned = {
            leaf.path: leaf
            for leaf in plan_for_leaves(leaves, plan).sparse
            if form_axes(leaf, leaves[leaf.path])
        }
        matched = {} if masks is None else match_masks(leaves, masks)
        for path, leaf in planned.items():
            check_zeros(leaves[path], matched.get(path), leaf)
        if implementation is None and cuda_target.unavailable("nm_matmul"):
            return fn(params, *args, **kwargs)
        results: list[Any] = []  # of the last trace

        def arrays_of(*args: Any, **kwargs: Any) -> list[Any]:
            values, structure = jax.tree.flatten(fn(*args, **kwargs))
            static = [None if is_array(x) else x for x in values]
            results[:] = [structure, static, [*map(is_array, values)]]
            return [x for x in values if is_array(x)]

        program = trace(arrays_of, params, args, kwargs)
        structure, static, dynamic = results
        outputs = iter(_run(program, planned, matched, implementation))
        return structure.unflatten(
            next(outputs) if is_dynamic else value
            for value, is_dynamic in zip(static, dynamic, strict=True)
        )

    return apply


def _run(
    program: Program,
    planned: Mapping[str, LeafPlan],
    masks: Mapping[str, Any],
    implementation: str | None,
) -> list[Any]:
    """Runs a program on the compressed forms that its products use."""
    leaves = {path: leaf for path, leaf in program.leaves.items() if is_array(leaf)}
    arrays = [[jnp.asarray(leaf) for leaf in leaves.values()], program.inputs]

    def run(
        make: Callable[[str, Any], Any], uses: set[FormUse], arrays: Sequence[Any]
    ) -> list[Any]:
        weights = map(make, leaves, arrays[0])
        rule = partial(_rule, implementation, uses)
        outputs, _ = evaluate(program.bound, [*weights, *arrays[1]], rule)
        return [*map(as_dense, outputs)]

    def with_forms(path: str, leaf: Any, axes: Any, dtype: Any) -> Any:
        if not axes:
            return leaf
        fixed = lax.stop_gradient(leaf)
        mask = masks.get(path)
        forms = make_forms(fixed, mask, planned[path], axes, dtype)
        return Accelerated(leaf, forms, path)

    def with_all_forms(path: str, leaf: Any) -> Any:
        axes = form_axes(planned[path], leaf) if path in planned else ()
        return with_forms(path, leaf, axes, leaf.dtype)

    # From shapes first: which forms, of which dtype, do products use?
    uses: set[FormUse] = set()
    jax.eval_shape(partial(run, with_all_forms, uses), arrays)

    def with_used_forms(path: str, leaf: Any) -> Any:
        used = [use for use in uses if use.leaf == path]
        axes = tuple(sorted({use.leaf_axis for use in used}))
        return with_forms(path, leaf, axes, _common_dtype(used, leaf.dtype))

    return run(with_used_forms, set(), arrays)


def _common_dtype(uses: Sequence[FormUse], dtype: Any) -> Any:
    """Returns the dtype to which a leaf is always cast before its products, or its own.

    It is cast on from its own if there are several.
    """
    casts = {use.casts for use in uses}
    if len(casts) == 1 and len(only := casts.pop()) == 1:
        return only[0]
    return dtype


def _rule(
    implementation: str | None,
    uses: set[FormUse],
    site: Site,
    inputs: list[Any],
    state: None,
) -> tuple[Sequence[Any], None]:
    """Takes compressed forms along, and uses them in products."""
    rule = partial(_rule, implementation, uses)
    eqn = site.eqn
    if not any(map(is_accelerated, inputs)):
        return bind(eqn, inputs), state
    if eqn.primitive.name == "dot_general":
        return [accelerated_product(eqn, inputs, implementation, rule, uses)], state
    dense = [*map(as_dense, inputs)]
    if eqn.primitive.name in _KEEP_WEIGHTS:
        outputs = zip(inputs, bind(eqn, dense), strict=True)
        return [with_dense(x, y) for x, y in outputs], state
    if (move := _move_of(eqn)) is not None:
        return [moves.map_forms(inputs[0], *bind(eqn, dense), move)], state
    match control_flow(eqn):
        case None | ShardMap():
            return bind(eqn, dense), state
        case Call() if eqn.primitive.name in _CHECKPOINTS:
            return _run_checkpoint(site, inputs, rule), state
        case Call() if eqn.primitive.name.startswith("custom_"):
            return bind(eqn, dense), state  # keeps the rule of derivatives
        case Scan(num_consts=num_consts, num_carry=num_carry):
            start = num_consts + num_carry
            scanned = map(_scannable, inputs[start:])
            inputs = [*inputs[:num_consts], *dense[num_consts:start], *scanned]
            return run_equation(site, inputs, rule, state, as_dense)
    return run_equation(site, inputs, rule, state, as_dense)


_CHECKPOINTS = frozenset(["checkpoint", "remat2"])
_KEEP_WEIGHTS = frozenset(
    ["copy", "copy_p", "name", "optimization_barrier", "sharding_constraint"]
)


def _move_of(eqn: JaxprEqn) -> Callable[[Form], Form | None] | None:
    """Returns what a transpose, cast or reshape does with a form; None for others."""
    old, new = eqn.invars[0].aval, eqn.outvars[0].aval
    match eqn.primitive.name:
        case "transpose":
            return partial(moves.transpose_form, permutation=eqn.params["permutation"])
        case "convert_element_type" if jnp.issubdtype(new.dtype, jnp.floating):
            return partial(moves.cast_form, dtype=new.dtype)
    if reshapes_row_major(eqn) and math.prod(old.shape) == math.prod(new.shape):
        return partial(moves.reshape_form, shape=tuple(new.shape))
    return None


def _scannable(x: Any) -> Any:
    if not is_accelerated(x):
        return x
    return moves.map_forms(x, x.dense, moves.scannable_form)


def _run_checkpoint(site: Site, inputs: Sequence[Any], rule: Any) -> Sequence[Any]:
    """Runs what `jax.checkpoint` wraps, whose intermediate values are not saved."""
    params = site.eqn.params

    def run(*inputs: Any) -> Sequence[Any]:
        return [*map(as_dense, run_equation(site, inputs, rule, None)[0])]

    if not params["differentiated"]:
        options = {name: params[name] for name in ("prevent_cse", "policy")}
        return jax.checkpoint(run, **options)(*inputs)
    if params["prevent_cse"]:  # part of a gradient: XLA must compute the values again
        inputs = lax.optimization_barrier(inputs)
    return run(*inputs)
