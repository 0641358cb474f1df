"""Products with weights that have compressed forms, and their gradients.

The gradient of the other operand is a product again, in which the weight contracts its
other axes: the same rule runs it, by the form along these. The gradient of the weight
is the dense product.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import JaxprEqn
from jaxtyping import Array

from jaxsparse._compressed import cuda_matmul, dot_general
from jaxsparse._compressed.accelerated_weight import (
    Accelerated,
    Form,
    Packed,
    as_dense,
    is_accelerated,
)
from jaxsparse._compressed.nm_matmul import Implementation
from jaxsparse._compressed.packed_form import pack_form, packs
from jaxsparse._trace import BoundJaxpr, EquationRule, bind, evaluate


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
    implementation: Implementation | None,
    rule: EquationRule,
) -> Array:
    """Computes a `dot_general` by the forms of its weight, as far as there are any.

    Differentiable in reverse mode, any number of times.

    Args:
      eqn: the equation.
      inputs: its operands, of which at least one is an accelerated weight.
      implementation: as in `accelerate`.
      rule: the rule that runs the gradient of the other operand.

    Raises:
      ValueError: the implementation is `"cuda"`, and the kernel cannot multiply by a
        form along the contracted axes.
    """
    product = _product(eqn, inputs)

    # JAX may pass NumPy's arrays, so the types are open.
    @jax.custom_vjp
    def multiply(x: Any, w: Any, others: Accelerated) -> Array:
        weight = replace(others, dense=w)
        chosen = _choose(eqn, product.operands(x, weight), implementation)
        return product.dense(x, w) if chosen is None else chosen.multiply()

    def save(x: Any, w: Any, others: Accelerated) -> tuple[Array, Any]:
        # By `multiply`, so that an outer derivative sees its rule.
        return checkpoint_name(multiply(x, w, others), PRODUCT), (x, w, others)

    def backward(residuals: Any, g: Any) -> tuple[Array, Array, None]:
        x, w, others = residuals
        program = product.gradient_of_x(x, w, g)
        (by_x,), _ = evaluate(program, [g, replace(others, dense=w)], rule)
        (by_w,) = jax.linear_transpose(partial(product.dense, x), w)(g)
        return by_x, by_w, None

    multiply.defvjp(save, backward)
    weight = product.weight
    if implementation != "xla":
        chosen = _choose(eqn, inputs, implementation)
        if chosen is not None:
            weight = replace(weight, packed=chosen.pack())
    return multiply(product.x, weight.dense, replace(weight, dense=None))


def record_uses(
    eqn: JaxprEqn,
    inputs: Sequence[Any],
    implementation: Implementation | None,
    uses: set[FormUse],
) -> Array:
    """Adds the forms that a product and its gradient use; computes it without them.

    Args:
      eqn: the equation.
      inputs: its operands, of which at least one is an accelerated weight.
      implementation: as in `accelerate`.
      uses: the forms are added to it.

    Raises:
      ValueError: as `accelerated_product`.
    """

    def record(eqn: JaxprEqn, inputs: Sequence[Any]) -> Sequence[Array]:
        if eqn.primitive.name == "dot_general":
            chosen = _choose(eqn, inputs, implementation)
            uses.update([] if chosen is None else [chosen.use])
        return bind(eqn, [*map(as_dense, inputs)])

    product = _product(eqn, inputs)
    (result,) = record(eqn, inputs)
    program = product.gradient_of_x(product.x, product.weight.dense, result)
    evaluate(
        program,
        [result, product.weight],
        lambda site, inputs, state: (record(site.eqn, inputs), state),
    )
    return result


class _Product(NamedTuple):
    """A `dot_general` of a weight and another operand.

    Attributes:
      eqn: the equation.
      weight: the weight.
      x: the other operand.
      position: 0 or 1, the operand that is the weight.
    """

    eqn: JaxprEqn
    weight: Accelerated
    x: Any
    position: int

    def operands(self, x: Any, w: Any) -> list[Any]:
        """Returns the operands in their order."""
        return [x, w] if self.position else [w, x]

    def dense(self, x: Any, w: Any) -> Array:
        """Computes the product by the dense weight."""
        return bind(self.eqn, self.operands(x, w))[0]

    def gradient_of_x(self, x: Any, w: Any, g: Any) -> BoundJaxpr:
        """Returns the gradient of `x` as a program of `g` and the weight."""

        def gradient(g: Any, w: Any) -> Array:
            return jax.linear_transpose(lambda x: self.dense(x, w), x)(g)[0]

        closed = jax.make_jaxpr(gradient)(g, w)
        return BoundJaxpr(closed.jaxpr, closed.consts)


def _product(eqn: JaxprEqn, inputs: Sequence[Any]) -> _Product:
    position = 1 if is_accelerated(inputs[1]) else 0
    return _Product(eqn, inputs[position], as_dense(inputs[1 - position]), position)


class _Choice(NamedTuple):
    """The form that computes a product.

    Attributes:
      weight: the weight.
      form: its form.
      matmul: the product with it.
      options: how that is computed.
    """

    weight: Accelerated
    form: Form
    matmul: dot_general.Matmul
    options: dot_general.MatmulOptions

    @property
    def use(self) -> FormUse:
        """This use of the form."""
        return FormUse(self.weight.leaf, self.form.leaf_axis, self.form.casts)

    @property
    def is_first(self) -> bool:
        """Whether this is the form that is packed."""
        return self.form is self.weight.forms[0]

    def pack(self) -> Packed | None:
        """Returns the first form as one array, or None if that is not possible."""
        inputs = self.matmul.operands.weight_axes
        outputs = tuple(i for i in range(self.form.stored.ndim) if i not in inputs)
        axes = inputs + outputs if self.is_first else outputs + inputs
        packed, matrix = self.weight.packed, self.matmul.matrix
        if packed is not None and packed.axes == axes:
            return packed
        if not self.is_first:
            first = self.weight.forms[0].weight
            matrix = dot_general.transposed_matrix(self.matmul, first)
        if matrix is None or not packs(matrix):
            return None
        return Packed(pack_form(matrix), axes)

    def multiply(self) -> Array:
        """Computes the product."""
        packed, matmul = self.weight.packed, self.matmul
        if packed is None:
            return dot_general.multiply([matmul], self.options)[0]
        product = cuda_matmul.cuda_matmul(
            matmul.rows(),
            matmul.matrix,
            packed.array,
            transposed=not self.is_first,
            exported=self.options.implementation == "cuda",
        )
        return matmul.output(product)


def _choose(
    eqn: JaxprEqn, inputs: Sequence[Any], implementation: Implementation | None
) -> _Choice | None:
    """Returns the form that computes a `dot_general`, or None if the dense weight does.

    Raises:
      ValueError: as `accelerated_product`.
    """
    if not any(map(is_accelerated, inputs)):
        return None
    _, weight, x, position = _product(eqn, inputs)
    contracted = eqn.params["dimension_numbers"][0][position]
    options = dot_general.MatmulOptions(implementation, quantize_activations=False)
    for form in weight.forms:
        compressed = form.weight
        if compressed.axis % compressed.ndim not in contracted:
            continue
        pair = (x, compressed) if position else (compressed, x)
        matmul, reason = dot_general.find_matmul(eqn, *pair, options)
        if matmul is not None and implementation != "xla":
            reason = cuda_matmul.unsupported_reason(matmul.operands.x, matmul.matrix)
        slow = matmul is not None and implementation is None and matmul.decompresses()
        if matmul is not None and not reason and not slow:
            return _Choice(weight, form, matmul, options)
        if implementation == "cuda":
            problem = dot_general.cuda_unavailable(eqn, reason)
            raise ValueError(f"leaf {weight.leaf!r}: {problem}")
    return None
