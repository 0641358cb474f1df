"""Products whose operands have compressed forms, and their gradients.

The gradient of one operand is a product again, in which the other contracts its other
axes: the same rule runs it, by the form along these. If only the weight has forms, the
gradient of the weight is the dense product.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import JaxprEqn
from jaxtyping import Array

from jaxsparse._compressed.accelerated_choice import FormUse, choose
from jaxsparse._compressed.accelerated_weight import as_dense, is_accelerated
from jaxsparse._compressed.activation_forms import (
    AXES,
    GRADIENT,
    SQUARE,
    compressed_square,
    gradient_with_forms,
    with_stand_ins,
)
from jaxsparse._compressed.nm_matmul import Implementation
from jaxsparse._trace import BoundJaxpr, EquationRule, Site, bind, evaluate


#: The name of products for policies of `jax.checkpoint`.
PRODUCT = "jaxsparse product"


def accelerated_product(
    eqn: JaxprEqn,
    inputs: Sequence[Any],
    implementation: Implementation | None,
    rule: EquationRule,
    *,
    sparse_gradient: bool = False,
    in_loop: bool = False,
) -> Array:
    """Computes a `dot_general` by the forms of its operands, as far as there are any.

    Differentiable in reverse mode, any number of times.

    Args:
      eqn: the equation.
      inputs: its operands.
      implementation: as in `accelerate`.
      rule: the rule that runs the gradients of operands.
      sparse_gradient: whether the gradient of the product has the zeros of a mask of
        its last axis and all others together, as `gradient_with_forms` expects.
      in_loop: whether it is part of a loop, which keeps what gradients need.

    Raises:
      ValueError: the implementation is `"cuda"`, and the kernel cannot multiply by a
        form along the contracted axes.
    """

    def operands(dense: Sequence[Any], forms: Sequence[Any]) -> list[Any]:
        pairs = zip(dense, forms, strict=True)
        return [x if form is None else replace(form, dense=x) for x, form in pairs]

    # JAX may pass NumPy's arrays, so the types are open.
    @jax.custom_vjp
    def multiply(dense: list[Any], forms: list[Any]) -> Array:
        chosen = choose(eqn, operands(dense, forms), implementation)
        return bind(eqn, dense)[0] if chosen is None else chosen.multiply()

    def save(dense: list[Any], forms: list[Any]) -> tuple[Array, Any]:
        # By `multiply`, so that an outer derivative sees its rule.
        y = multiply(dense, forms)
        if not in_loop and any(form and form.activation for form in forms):
            y, forms = _forms_after(y, forms)
        return checkpoint_name(y, PRODUCT), (dense, forms)

    def backward(residuals: Any, g: Any) -> tuple[list[Array], None]:
        own = operands(*residuals)
        if sparse_gradient:
            return _sparse_gradients(eqn, own, g, implementation, rule), None
        return [_gradient(eqn, own, g, i, rule) for i in range(2)], None

    multiply.defvjp(save, backward)
    inputs = _pack(eqn, inputs, implementation)
    forms = [replace(x, dense=None) if is_accelerated(x) else None for x in inputs]
    return multiply([*map(as_dense, inputs)], forms)


def _forms_after(y: Array, forms: Sequence[Any]) -> tuple[Array, list[Any]]:
    """Returns forms for the gradients of a product that are there after the product.

    Its dense activation is then not kept until XLA finds time for it. A loop would keep
    what the barrier takes beside what it returns, and has this order anyway. Without
    what is packed, which devices would be sent twice.
    """
    own = [form.forms if form else () for form in forms]
    y, own = lax.optimization_barrier((y, own))
    pairs = zip(forms, own, strict=True)
    return y, [form and replace(form, forms=after) for form, after in pairs]


def _sparse_gradients(
    eqn: JaxprEqn,
    inputs: Sequence[Any],
    g: Array,
    implementation: Implementation | None,
    rule: EquationRule,
) -> list[Array]:
    """Returns the gradients of both operands, given one with the zeros of a mask.

    First what needs the dense one, which is then not there beside its forms for long.
    """

    def used_axes(position: int) -> tuple[int, ...]:
        def record(inputs: Sequence[Any], g: Array, uses: set[FormUse]) -> None:
            sparse = with_stand_ins(g, GRADIENT)
            _record_gradient(eqn, inputs, sparse, position, implementation, uses)

        return _used_axes(record, [inputs, g])

    used = [used_axes(position) for position in range(2)]
    results: list[Any] = [None, None]
    for position in (i for i in range(2) if not used[i]):
        result = _gradient(eqn, inputs, g, position, rule)
        results[position], g = lax.optimization_barrier((result, g))
    sparse = gradient_with_forms(g, [axis for axis in AXES if axis in sum(used, ())])
    for position in (i for i in range(2) if used[i]):
        results[position] = _gradient(eqn, inputs, sparse, position, rule)
    return results


def _pack(
    eqn: JaxprEqn, inputs: Sequence[Any], implementation: Implementation | None
) -> list[Any]:
    """Returns the operands, with the weight packed if its form computes the product."""
    chosen = None
    if implementation != "xla":
        chosen = choose(eqn, inputs, implementation)
    if chosen is None or chosen.weight.activation:
        return [*inputs]
    packed = replace(chosen.weight, packed=chosen.pack())
    return [packed if x is chosen.weight else x for x in inputs]


def with_square(
    eqn: JaxprEqn,
    inputs: Sequence[Any],
    position: int,
    implementation: Implementation | None,
) -> list[Any]:
    """Returns the operands of a product with a squared ReLU, which gets its forms.

    Args:
      eqn: the product.
      inputs: its operands.
      position: 0 or 1, which is the squared ReLU.
      implementation: as in `accelerate`.
    """
    axes = _used_axes(
        lambda inputs, uses: record_uses(eqn, inputs, implementation, uses, position),
        [inputs],
    )
    operands = [*inputs]
    operands[position] = compressed_square(inputs[position], axes)
    return operands


def _used_axes(record: Callable[..., Any], args: Sequence[Any]) -> tuple[int, ...]:
    """Returns along which axes forms of activations are used.

    Args:
      record: takes `args`, as shapes, and a set, to which it adds uses of forms.
      args: arrays.
    """
    uses: set[FormUse] = set()
    jax.eval_shape(partial(record, uses=uses), *args)
    used = {use.leaf_axis for use in uses if use.activation}
    return tuple(axis for axis in AXES if axis in used)


def record_uses(
    eqn: JaxprEqn,
    inputs: Sequence[Any],
    implementation: Implementation | None,
    uses: set[FormUse],
    square: int | None = None,
    *,
    sparse_gradient: bool = False,
) -> Array:
    """Adds the forms that a product and its gradients use; computes it without them.

    Args:
      eqn: the equation.
      inputs: its operands.
      implementation: as in `accelerate`.
      uses: the forms are added to it.
      square: 0 or 1, which operand is a squared ReLU, if one is.
      sparse_gradient: as in `accelerated_product`.

    Raises:
      ValueError: as `accelerated_product`.
    """
    operands = [*inputs]
    if square is not None:
        operands[square] = with_stand_ins(inputs[square], SQUARE)
    result = _record(eqn, operands, implementation, uses)
    g = with_stand_ins(result, GRADIENT) if sparse_gradient else result
    for position in range(2):
        _record_gradient(eqn, operands, g, position, implementation, uses)
    return result


def _record_gradient(
    eqn: JaxprEqn,
    inputs: Sequence[Any],
    g: Any,
    position: int,
    implementation: Implementation | None,
    uses: set[FormUse],
) -> None:
    """Adds the forms that the gradient of an operand uses."""

    def rule(site: Site, inputs: list[Any], state: None) -> tuple[list[Array], None]:
        return [_record(site.eqn, inputs, implementation, uses)], state

    _gradient(eqn, inputs, g, position, rule)


def _record(
    eqn: JaxprEqn,
    inputs: Sequence[Any],
    implementation: Implementation | None,
    uses: set[FormUse],
) -> Array:
    if eqn.primitive.name == "dot_general":
        chosen = choose(eqn, inputs, implementation)
        uses.update([] if chosen is None else [chosen.use])
    return bind(eqn, [*map(as_dense, inputs)])[0]


def _gradient(
    eqn: JaxprEqn, inputs: Sequence[Any], g: Any, position: int, rule: EquationRule
) -> Array:
    """Returns the gradient of an operand, given that of the product.

    It is a product of the latter and of the other operand, which the rule runs if any
    of them has forms.
    """
    other = inputs[1 - position]

    def gradient(g: Any, other: Any) -> Array:
        def product(x: Any) -> Array:
            return bind(eqn, [other, x] if position else [x, other])[0]

        return jax.linear_transpose(product, as_dense(inputs[position]))(g)[0]

    if not (is_accelerated(g) or is_accelerated(other)):
        return gradient(g, other)
    closed = jax.make_jaxpr(gradient)(as_dense(g), as_dense(other))
    program = BoundJaxpr(closed.jaxpr, closed.consts)
    (result,), _ = evaluate(program, [g, other], rule)
    return as_dense(result)
