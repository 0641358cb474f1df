"""What a product multiplies a parameter by: one row a token, one column an input."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Shaped

from jaxsparse._trace.record import Contraction
from jaxsparse._trace.view import ViewAxis


#: What an axis of an operand shows of the parameter, and its size.
ShownAxis = tuple[ViewAxis, int]


class ProductInputs(NamedTuple):
    """The inputs of a product with a parameter.

    Attributes:
      x: one set of rows for each place of the product's batch axes or, of a
        convolution, for each feature group.
      batch: what the batch axes show of the parameter; their places make the sets.
      inputs: what the contracted axes show of it; their places make the inputs.
      groups: the feature groups of a convolution.
      members: the tokens that belong to each set, where `x` is one set for all.
    """

    x: Shaped[Array, "set *token input"]
    batch: Sequence[ShownAxis]
    inputs: Sequence[ShownAxis]
    groups: int = 1
    members: Bool[Array, "set token"] | None = None


def product_inputs(eqn, contraction: Contraction, inputs: list[Any]) -> ProductInputs:
    """The inputs of a product with a parameter, by its primitive.

    Raises:
      ValueError: the product is of a form whose inputs are not read.
    """
    return _READ[eqn.primitive.name](eqn, contraction, inputs)


def _dot_rows(eqn, contraction: Contraction, inputs: list[Any]) -> ProductInputs:
    operand, _, view, shape = contraction
    x = inputs[1 - operand]
    # Pairs of an axis of the parameter's operand and one of the inputs.
    contracted, batch = (
        list(zip(numbers[operand], numbers[1 - operand], strict=True))
        for numbers in eqn.params["dimension_numbers"]
    )
    # Along an axis that holds copies of the parameter only the inputs vary.
    shown = lambda pairs: [pair for pair in pairs if view.dims[pair[0]].axes]
    summed = [axis for mine, axis in contracted if not view.dims[mine].axes]
    contracted, batch = shown(contracted), shown(batch)
    first, last = ([axis for _, axis in pairs] for pairs in (batch, contracted))
    tokens = [i for i in range(x.ndim) if i not in (*first, *last, *summed)]
    x = x.transpose([*summed, *first, *tokens, *last])
    if summed:
        x = x.sum(range(len(summed)))
    sets, width = (
        int(np.prod([shape[mine] for mine, _ in pairs], dtype=int))
        for pairs in (batch, contracted)
    )
    # Over explicit axes of a mesh only one thing can be reshaped at a time.
    if len(last) != 1:
        x = x.reshape(*x.shape[: x.ndim - len(last)], width)
    x = x[None] if not first else x.reshape(sets, *x.shape[len(first) :])
    named = lambda pairs: [(view.dims[mine], shape[mine]) for mine, _ in pairs]
    return ProductInputs(x, named(batch), named(contracted))


def _ragged_rows(eqn, contraction: Contraction, inputs: list[Any]) -> ProductInputs:
    operand, _, view, _ = contraction
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    usual = lax.RaggedDotDimensionNumbers((((1,), (1,)), ((), ())), (0,), (0,))
    if operand != 1 or numbers != usual:
        raise ValueError("a ragged_dot of these axes is not read")
    x, weight, sizes = inputs
    ends = jnp.cumsum(sizes)
    token = jnp.arange(x.shape[0], dtype=ends.dtype)
    members = (token >= (ends - sizes)[:, None]) & (token < ends[:, None])
    named = lambda axis: [(view.dims[axis], weight.shape[axis])]
    return ProductInputs(x[None], named(0), named(1), members=members)


def _conv_rows(eqn, contraction: Contraction, inputs: list[Any]) -> ProductInputs:
    _, side, view, kernel = contraction
    params = eqn.params
    groups, numbers = params["feature_group_count"], params["dimension_numbers"]
    width = numbers.rhs_spec[1]
    if params["batch_group_count"] > 1:
        raise ValueError("a convolution with batch groups is not read")
    window = [kernel[i] for i in side.spatial]
    in_order = tuple(range(2 + len(window)))
    patches = lax.conv_general_dilated_patches(
        inputs[0],
        window,
        params["window_strides"],
        params["padding"],
        params["lhs_dilation"],
        params["rhs_dilation"],
        dimension_numbers=lax.ConvDimensionNumbers(
            numbers.lhs_spec, in_order, in_order
        ),
        precision=lax.Precision.HIGHEST,  # or a GPU rounds what it copies
    )
    count, _, *image = patches.shape
    x = patches.reshape(count, groups, kernel[width], -1, *image)
    x = x.transpose(1, 0, *range(4, x.ndim), 3, 2).reshape(groups, count, *image, -1)
    inside = [*side.spatial, width]
    return ProductInputs(x, [], [(view.dims[i], kernel[i]) for i in inside], groups)


_READ: dict[str, Callable[..., ProductInputs]] = {
    "conv_general_dilated": _conv_rows,
    "dot_general": _dot_rows,
    "ragged_dot": _ragged_rows,
    "ragged_dot_general": _ragged_rows,
}
