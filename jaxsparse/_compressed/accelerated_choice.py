"""Which compressed form of an operand computes a product."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend.core import JaxprEqn
from jaxtyping import Array

from jaxsparse._compressed import cuda_matmul, dot_general, kernel_support
from jaxsparse._compressed.accelerated_weight import (
    Accelerated,
    Form,
    Packed,
    as_dense,
    is_accelerated,
)
from jaxsparse._compressed.nm_matmul import Implementation
from jaxsparse._compressed.packed_form import pack_form, packs


class FormUse(NamedTuple):
    """One use of a compressed form.

    Attributes:
      leaf: the path of the parameter.
      leaf_axis: its axis along which groups lie.
      casts: the dtypes to which it was cast before, one after the other.
      activation: whether it is that of an activation.
    """

    leaf: str
    leaf_axis: int
    casts: tuple[Any, ...]
    activation: bool


class Choice(NamedTuple):
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
        weight, form = self.weight, self.form
        return FormUse(weight.leaf, form.leaf_axis, form.casts, weight.activation)

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


def choose(
    eqn: JaxprEqn, inputs: Sequence[Any], implementation: Implementation | None
) -> Choice | None:
    """Returns the form that computes a `dot_general`, or None if dense operands do.

    That of a weight, if both operands have one.

    Raises:
      ValueError: as `accelerated_product`.
    """
    options = dot_general.MatmulOptions(implementation, quantize_activations=False)
    positions = [i for i in (1, 0) if is_accelerated(inputs[i])]
    problem = ""
    for position in sorted(positions, key=lambda i: inputs[i].activation):
        weight, x = inputs[position], as_dense(inputs[1 - position])
        contracted = eqn.params["dimension_numbers"][0][position]
        for form in weight.forms:
            compressed = form.weight
            if compressed.axis % compressed.ndim not in contracted:
                continue
            pair = (x, compressed) if position else (compressed, x)
            matmul, reason = dot_general.find_matmul(eqn, *pair, options)
            slow = matmul is not None and not implementation and matmul.decompresses()
            if matmul is not None and implementation != "xla" and not slow:
                operands = matmul.operands.x, matmul.matrix
                reason = kernel_support.unsupported_reason(*operands)
            if matmul is not None and not reason and not slow:
                return Choice(weight, form, matmul, options)
            reason = dot_general.cuda_unavailable(eqn, reason)
            name = weight.leaf if weight.activation else f"leaf {weight.leaf!r}"
            problem = problem or f"{name}: {reason}"
    if implementation == "cuda" and problem:
        raise ValueError(problem)
    return None
