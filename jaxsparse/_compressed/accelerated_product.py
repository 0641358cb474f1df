"""Products with weights that have compressed forms, and their gradients.

The gradient of the other operand is a product again, in which the weight contracts its
other axes: the same rule runs it, by the form along these. The gradient of the weight
is the dense product.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import JaxprEqn
from jaxtyping import Array

from jaxsparse._compressed import cuda_matmul, lax_ops
from jaxsparse._compressed.accelerated_weight import (
    Accelerated,
    Form,
    as_dense,
    is_accelerated,
)
from jaxsparse._trace import BoundJaxpr, EquationRule, Site, bind, evaluate


#: The name of products for policies of `jax.checkpoint`.
PRODUCT = "jaxsparse product"


class FormUse(NamedTuple):
    """One use of a compressed form.

    Attributes:
      leaf: the path of the parameter.
      leaf_axis: its axis along which groups lie.
      casts: the dtypes to which it was cast before, one after the other.
    """

    leaf: str
    leaf_axis: int
    casts: tuple[Any, ...]


def accelerated_product(
    eqn: JaxprEqn,
    inputs: Sequence[Any],
    implementation: str | None,
    rule: EquationRule,
    uses: set[FormUse],
) -> Array:
    """Computes a `dot_general` by the forms of its weight.

    Differentiable in reverse mode, any number of times.

    Args:
      eqn: the equation.
      inputs: its operands, of which at least one is an accelerated weight.
      implementation: as in `accelerate`.
      rule: the rule that runs the gradient of the other operand.
      uses: the forms that the product and that gradient use are added to it.

    Raises:
      ValueError: the implementation is `"cuda"`, and the kernel cannot multiply by a
        form along the contracted axes.
    """
    position = 1 if is_accelerated(inputs[1]) else 0
    weight, x = inputs[position], as_dense(inputs[1 - position])

    def operands(x: Any, w: Any) -> list[Any]:
        return [x, w] if position else [w, x]

    def dense(x: Any, w: Any) -> Array:
        return bind(eqn, operands(x, w))[0]

    def gradient_of_x(g: Any, w: Any) -> Array:
        return jax.linear_transpose(lambda x: dense(x, w), x)(g)[0]

    result = jax.eval_shape(dense, x, weight.dense)
    closed = jax.make_jaxpr(gradient_of_x)(result, weight.dense)
    program = BoundJaxpr(closed.jaxpr, closed.consts)
    used = _forms_used(program, (result, weight), implementation)
    if (chosen := _choose(eqn, operands(x, weight), implementation)) is not None:
        used |= {chosen.use}
    uses.update(used)
    if not used:
        return dense(x, weight.dense)

    # JAX may pass NumPy's arrays, so the types are open.
    @jax.custom_vjp
    def multiply(x: Any, w: Any, forms: tuple[Form, ...]) -> Array:
        again = Accelerated(w, forms, weight.leaf)
        chosen = _choose(eqn, operands(x, again), implementation)
        return dense(x, w) if chosen is None else chosen.multiply()

    def save(x: Any, w: Any, forms: tuple[Form, ...]) -> tuple[Array, Any]:
        # By `multiply`, so that an outer derivative sees its rule.
        return checkpoint_name(multiply(x, w, forms), PRODUCT), (x, w, forms)

    def backward(residuals: Any, g: Any) -> tuple[Array, Array, None]:
        x, w, forms = residuals
        (by_x,), _ = evaluate(program, [g, Accelerated(w, forms, weight.leaf)], rule)
        (by_w,) = jax.linear_transpose(partial(dense, x), w)(g)
        return by_x, by_w, None

    multiply.defvjp(save, backward)
    axes = {use.leaf_axis for use in used}
    forms = tuple(form for form in weight.forms if form.leaf_axis in axes)
    return multiply(x, weight.dense, forms)


class _Choice(NamedTuple):
    """The form that computes a product.

    Attributes:
      use: this use of it.
      multiply: computes the product.
    """

    use: FormUse
    multiply: Callable[[], Array]


def _choose(
    eqn: JaxprEqn, inputs: Sequence[Any], implementation: str | None
) -> _Choice | None:
    """Returns the form that computes a `dot_general`, or None if the dense weight does.

    Raises:
      ValueError: as `accelerated_product`.
    """
    position = 1 if is_accelerated(inputs[1]) else 0
    weight, x = inputs[position], as_dense(inputs[1 - position])
    contracted = eqn.params["dimension_numbers"][0][position]
    options = lax_ops.MatmulOptions(implementation, quantize_activations=False)
    for form in weight.forms:
        compressed = form.weight
        if compressed.axis % compressed.ndim not in contracted:
            continue
        pair = (x, compressed) if position else (compressed, x)
        matmul, reason = lax_ops.find_matmul(eqn, *pair, options)
        if matmul is not None and implementation != "xla":
            reason = cuda_matmul.unsupported_reason(matmul.operands.x, matmul.matrix)
        if matmul is not None and not reason:
            use = FormUse(weight.leaf, form.leaf_axis, form.casts)
            return _Choice(use, partial(lax_ops.multiply, matmul, options))
        if implementation == "cuda":
            problem = lax_ops.cuda_unavailable(eqn, reason)
            raise ValueError(f"leaf {weight.leaf!r}: {problem}")
    return None


def _forms_used(
    program: BoundJaxpr, args: Sequence[Any], implementation: str | None
) -> set[FormUse]:
    """Returns the forms that a program of products uses."""
    uses: set[FormUse] = set()

    def rule(site: Site, inputs: list[Any], state: None) -> tuple[Any, None]:
        if site.eqn.primitive.name == "dot_general":
            chosen = _choose(site.eqn, inputs, implementation)
            uses.update([] if chosen is None else [chosen.use])
        return bind(site.eqn, [*map(as_dense, inputs)]), state

    jax.eval_shape(lambda *args: evaluate(program, args, rule)[0], *args)
    return uses
