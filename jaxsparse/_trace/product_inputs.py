"""The inputs that a product multiplies a parameter by: a row per token."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn
from jaxtyping import Array, Bool, Shaped

from jaxsparse._trace.record import Contraction
from jaxsparse._trace.view_axis import ViewAxis


#: An axis of an operand, and its size.
SizedAxis = tuple[ViewAxis, int]


class ProductInputs(NamedTuple):
    """The inputs of a product with a parameter.

    Attributes:
      x: the inputs, in one set of tokens for each element of the product's batch axes
        or, for a convolution, for each feature group.
      batch: how the batch axes show the parameter; their elements enumerate the sets.
      inputs: how the contracted axes show it; their elements enumerate the inputs.
      groups: the feature groups of a convolution.
      members: the tokens that belong to each set, if all sets share the one in `x`.
    """

    x: Shaped[Array, "set *token input"]
    batch: Sequence[SizedAxis]
    inputs: Sequence[SizedAxis]
    groups: int = 1
    members: Bool[Array, "set token"] | None = None


def product_inputs(
    eqn: JaxprEqn, contraction: Contraction, inputs: list[Any]
) -> ProductInputs:
    """Returns the inputs of a product with a parameter.

    Raises:
      ValueError: the inputs of a product of this form cannot be read.
    """
    return _READERS[eqn.primitive.name](eqn, contraction, inputs)


def _dot_inputs(
    eqn: JaxprEqn, contraction: Contraction, inputs: list[Any]
) -> ProductInputs:
    operand, _, view, shape = contraction
    x = inputs[1 - operand]
    # Pairs of an axis of the parameter's operand and the matching axis of `x`.
    contracted, batch = (
        list(zip(numbers[operand], numbers[1 - operand], strict=True))
        for numbers in eqn.params["dimension_numbers"]
    )
    # Along an axis that holds copies of the parameter, only the inputs vary.
    varies = lambda pair: bool(view.axes[pair[0]].parameter_axes)
    summed = [axis for own, axis in contracted if not varies((own, axis))]
    contracted, batch = [*filter(varies, contracted)], [*filter(varies, batch)]
    first, last = ([axis for _, axis in pairs] for pairs in (batch, contracted))
    tokens = [i for i in range(x.ndim) if i not in (*first, *last, *summed)]
    x = x.transpose([*summed, *first, *tokens, *last])
    if summed:
        x = x.sum(range(len(summed)))
    num_sets, num_inputs = (
        math.prod(shape[own] for own, _ in pairs) for pairs in (batch, contracted)
    )
    # Over explicit axes of a mesh, a reshape may merge only one group of axes.
    if len(last) != 1:
        x = x.reshape(*x.shape[: x.ndim - len(last)], num_inputs)
    x = x.reshape(num_sets, *x.shape[len(first) :]) if first else x[None]
    sized = lambda pairs: [(view.axes[own], shape[own]) for own, _ in pairs]
    return ProductInputs(x, sized(batch), sized(contracted))


def _ragged_inputs(
    eqn: JaxprEqn, contraction: Contraction, inputs: list[Any]
) -> ProductInputs:
    operand, _, view, _ = contraction
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    supported = lax.RaggedDotDimensionNumbers((((1,), (1,)), ((), ())), (0,), (0,))
    if operand != 1 or numbers != supported:
        raise ValueError("inputs of a ragged_dot over these axes cannot be read")
    x, weight, sizes = inputs
    ends = jnp.cumsum(sizes)
    token = jnp.arange(x.shape[0], dtype=ends.dtype)
    members = (token >= (ends - sizes)[:, None]) & (token < ends[:, None])
    sized = lambda axis: [(view.axes[axis], weight.shape[axis])]
    return ProductInputs(x[None], sized(0), sized(1), members=members)


def _conv_inputs(
    eqn: JaxprEqn, contraction: Contraction, inputs: list[Any]
) -> ProductInputs:
    _, axes, view, kernel = contraction
    params = eqn.params
    groups, numbers = params["feature_group_count"], params["dimension_numbers"]
    (channels,) = axes.contracted
    if params["batch_group_count"] > 1:
        raise ValueError("inputs of a convolution with batch groups cannot be read")
    window = [kernel[i] for i in axes.spatial]
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
        precision=lax.Precision.HIGHEST,  # otherwise a GPU rounds the copied values
    )
    count, _, *image = patches.shape
    x = patches.reshape(count, groups, kernel[channels], -1, *image)
    x = x.transpose(1, 0, *range(4, x.ndim), 3, 2).reshape(groups, count, *image, -1)
    summed = [*axes.spatial, channels]
    return ProductInputs(x, [], [(view.axes[i], kernel[i]) for i in summed], groups)


_READERS: dict[str, Callable[[JaxprEqn, Contraction, list[Any]], ProductInputs]] = {
    "conv_general_dilated": _conv_inputs,
    "dot_general": _dot_inputs,
    "ragged_dot": _ragged_inputs,
    "ragged_dot_general": _ragged_inputs,
}
