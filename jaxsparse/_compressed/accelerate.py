"""Trains on compressed weights: the same function of dense parameters, but faster.

The program runs on dense weights. Beside each planned one go its compressed forms, made
once, before the first equation. Transposes, reshapes and casts take them along, through
calls, `checkpoint` and, layer by layer, scans; a product with the weight runs on them.
Activations are compressed where they meet their product.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxsparse._compressed.accelerated_choice import FormUse
from jaxsparse._compressed.accelerated_rule import Acceleration, accelerated_rule
from jaxsparse._compressed.accelerated_weight import as_dense
from jaxsparse._compressed.leaf_forms import (
    LeafZeros,
    accelerated_leaf,
    check_zeros,
    form_axes,
    masked_leaf,
)
from jaxsparse._compressed.nm_matmul import Implementation, check_implementation
from jaxsparse._masks import match_masks, search_masks
from jaxsparse._plans import Plan, PlanLike, plan_for, plan_or_rules
from jaxsparse._trace import (
    NO_SQUARED_RELUS,
    Program,
    evaluate,
    find_squared_relus,
    split_results,
    trace,
)
from jaxsparse._trees import PyTree, change_variables, flatten, with_changes
from jaxsparse.kernels import cuda_target


def accelerate(
    fn: Callable[..., Any],
    plan: PlanLike | None,
    *,
    masks: PyTree | Literal["best"] | None = None,
    activations: bool = False,
    implementation: Implementation | None = None,
) -> Callable[..., Any]:
    """Returns `fn` with the products of its sparse weights on sparse tensor cores.

    A function of the same dense parameters, to be differentiated and trained as before.
    A product with a planned weight runs on the compressed weight if the plan's groups
    lie along an axis that it sums over. So does the gradient of its other operand if
    the plan is transposable, such as `"2:4 transposable"`: it multiplies by the
    transposed weight. The gradient of the weight is the dense product.

    Each weight is compressed once a call, in the dtype of the products, outside of
    loops and `jax.checkpoint`. So put a loop over the parts of a batch inside: in
    `accelerate(jax.grad(loss), plan)`, or in `fn` around the gradient, all products of
    the backward pass are accelerated as well.

    Args:
      fn: any JAX function of the parameters: `fn(params, *args, **kwargs)`, such as a
        loss, or its gradient.
      plan: the plan, rules or a pattern that the parameters obey: what it prunes is
        zero, as after each step of `wrap_optimizer`. Patterns other than n:m in groups
        of 4, 8 or 16 are not accelerated. None if only activations are sparse.
      masks: a tree of masks, bool or packed, such as `get_masks(state)`; weights that
        they prune count as zero, and gradients are those of dense weights, as with
        `straight_through(params, masks)`. `"best"` finds the best masks of the
        parameters at each call, as `straight_through(params, plan)`. By default the
        zeros of the parameters are the mask.
      activations: whether squared ReLUs, of which most are zero in trained networks
        (Haziza et al., 2025, arXiv:2503.16672), are compressed, too: where `fn`
        computes `relu(h)**2 @ w`, also with `jnp.square` and `jnp.maximum(h, 0)`. The
        best transposable 2:4 mask of `relu(h)` is found, over all leading axes together
        and the last one. What it drops counts as zero, on every device, and gradients
        are those of this function; `dropped_activations` reports it. The product and
        the gradient of `w` are then sparse, and so are the gradients of both operands
        of a product that goes into `h` and nowhere else. Squares stay as they are if
        they are cast or reshaped before the product, are not in bfloat16 or float16, if
        16 does not divide their last axis, or all others together, or if the product
        has batch axes or sums over other axes than the last.
      implementation: the implementation of products, as in `nm_matmul`. By default a
        product that `"cuda"` does not support stays as it is, and on devices without
        the kernel the function is `fn` itself. `"xla"` also runs on compressed weights
        elsewhere, which saves no time. With `"cuda"` a product along the groups of a
        planned weight raises if the kernel does not support it, and so does a function
        without a squared ReLU that `activations` finds. Weights that `fn` changes
        before their product, other than by a transpose, reshape, slice or cast, stay
        dense, and so do products with batch axes, inside `shard_map`, and inside
        functions with derivative rules of their own.

    Returns:
      A function with the parameters, arguments and results of `fn`. It is traceable
      like `fn`, but differentiable in reverse mode only. Variables of NNX that `fn`
      changes, such as batch statistics, change as they do in a call of `fn`. Values
      that the compressed weights do not hold have no effect: if a traced weight has
      more than `n` weights in a group, products take the first `n`.

    Raises:
      ValueError: the implementation or the masks are unknown; or there is neither a
        plan nor `activations`. When called: `activations` is given for a function that
        computes gradients of squared ReLUs, or multiplies such a ReLU by other arrays,
        instead of the function inside; the implementation is `"cuda"`, and there are no
        such ReLUs; the plan or the masks do not fit the parameters; a concrete weight,
        or its mask, has more than `n` weights in a group; the implementation is not
        available for a product; or `fn` changes a variable of NNX that the arguments
        hold more than once.

    >>> from jaxsparse import Rule, create_masks, mask_params
    >>> loss = lambda params, x: jnp.sum((x @ params["w"]) ** 2)
    >>> plan = [Rule("w", "2:4 transposable", axis=0)]
    >>> params = {"w": jnp.arange(256.0).reshape(16, 16)}
    >>> params = mask_params(params, create_masks(params, plan))
    >>> fast = accelerate(loss, plan, implementation="xla")
    >>> gradient = jax.jit(jax.grad(fast))(params, jnp.ones((2, 16)))["w"]
    >>> bool(jnp.all(gradient == jax.grad(loss)(params, jnp.ones((2, 16)))["w"]))
    True
    """
    check_implementation(implementation)
    if isinstance(masks, str) and masks != "best":
        raise ValueError(
            f"masks {masks!r} are unknown: give a tree of masks, 'best', or None for "
            "the zeros of the parameters"
        )
    if plan is None and not activations:
        raise ValueError(
            "accelerate needs a plan, or activations=True: without both there is "
            "nothing to accelerate"
        )
    plan = None if plan is None else plan_or_rules(plan)
    fn_with_changes = with_changes(fn)

    def apply(params: PyTree, *args: Any, **kwargs: Any) -> Any:
        leaves = flatten(params)
        zeros: dict[str, LeafZeros] = {}
        if plan is not None:
            planned = plan_for(params, plan)
            zeros = _zeros_by_path(leaves.by_path, planned, masks)
        dense = implementation is None and bool(cuda_target.unavailable("nm_matmul"))
        if dense and not activations:
            masked = {
                path: masked_leaf(leaf, zeros[path]) if path in zeros else leaf
                for path, leaf in leaves.by_path.items()
            }
            result, changes = fn_with_changes(leaves.unflatten(masked), *args, **kwargs)
            change_variables(changes, params, *args, **kwargs)
            return result
        arrays_of, complete = split_results(fn_with_changes)
        program = trace(arrays_of, params, args, kwargs)
        found = NO_SQUARED_RELUS
        if activations:
            found = find_squared_relus(program.bound)
            if implementation == "cuda" and not found.products:
                raise ValueError(
                    "fn has no product of a squared ReLU that can be compressed, "
                    "relu(h)**2 @ w in bfloat16 or float16 with nothing between: drop "
                    "activations=True, or implementation='cuda', with which it is "
                    "required"
                )
        how = Acceleration(implementation, None, found, dense)
        result, changes = complete(_run(program, zeros, how))
        change_variables(changes, params, *args, **kwargs)
        return result

    return apply


def _zeros_by_path(
    leaves: Mapping[str, Any], plan: Plan, masks: PyTree | None
) -> dict[str, LeafZeros]:
    """Returns the zeros of each leaf that is pruned.

    Raises:
      ValueError, TypeError: as `accelerate`.
    """
    by_path: Mapping[str, Any] = {leaf.path: masks for leaf in plan.sparse}
    if isinstance(masks, str):
        # Leaves that no form can be made of may share a threshold.
        others = [x for x in plan.sparse if not form_axes(leaves[x.path], x)]
        fixed = {leaf.path: lax.stop_gradient(leaves[leaf.path]) for leaf in others}
        by_path = {**by_path, **search_masks(fixed, others)}
    elif masks is not None:
        by_path = match_masks(leaves, masks)
        by_path = {path: mask for path, mask in by_path.items() if mask is not None}
    for path in by_path:
        if plan[path].pattern is None:
            raise ValueError(
                f"leaf {path!r} of shape {plan[path].shape} has a mask, but its plan "
                f"is {plan[path].decision!r}: give None in its place, or a plan that "
                "prunes it"
            )
    zeros = {path: LeafZeros(plan[path], mask) for path, mask in by_path.items()}
    for path, of_leaf in zeros.items():
        check_zeros(leaves[path], of_leaf)
    return zeros


def _run(
    program: Program,
    zeros: Mapping[str, LeafZeros],
    how: Acceleration,
) -> list[Any]:
    """Runs a program on the compressed forms that its products use."""
    leaves = program.arrays
    arrays = [[jnp.asarray(leaf) for leaf in leaves.values()], program.inputs]

    def run(
        choose: Callable[[str, Array], tuple[tuple[int, ...], Any]],
        uses: set[FormUse] | None,
        arrays: Sequence[Any],
    ) -> list[Any]:
        def value(path: str, leaf: Array) -> Any:
            if path not in zeros:
                return leaf
            axes, dtype = ((), leaf.dtype) if how.dense else choose(path, leaf)
            if not axes:
                return masked_leaf(leaf, zeros[path])
            return accelerated_leaf(leaf, zeros[path], axes, dtype)

        rule = partial(accelerated_rule, how._replace(uses=uses))
        values = map(value, leaves, arrays[0])
        outputs, _ = evaluate(program.bound, [*values, *arrays[1]], rule)
        return [*map(as_dense, outputs)]

    def all_forms(path: str, leaf: Array) -> tuple[tuple[int, ...], Any]:
        return form_axes(leaf, zeros[path].planned), leaf.dtype

    # From shapes first: which forms, of which dtype, do products use?
    uses: set[FormUse] = set()
    jax.eval_shape(partial(run, all_forms, uses), arrays)

    def used_forms(path: str, leaf: Array) -> tuple[tuple[int, ...], Any]:
        used = [use for use in uses if use.leaf == path]
        axes = tuple(sorted({use.leaf_axis for use in used}))
        return axes, _common_dtype(used, leaf.dtype)

    return run(used_forms, None, arrays)


def _common_dtype(uses: Sequence[FormUse], dtype: Any) -> Any:
    """Returns the dtype to which a leaf is always cast before its products, or its own.

    It is cast on from its own if there are several.
    """
    casts = {use.casts for use in uses}
    if len(casts) == 1 and len(only := casts.pop()) == 1:
        return only[0]
    return dtype
