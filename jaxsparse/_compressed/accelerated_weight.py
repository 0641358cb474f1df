"""A dense weight on its way to a product, with the compressed forms of that product.

What moves the weight moves its forms too. A form is stored as the kernel reads it, and
a transpose only changes the order in which its axes are read: no bytes move.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from jaxsparse._compressed import lax_ops
from jaxsparse._compressed.compressed_array import Compressed
from jaxsparse._compressed.rectified import Rectified


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Form:
    """A compressed weight whose axes are read in another order than they are stored.

    Attributes:
      stored: the compressed weight.
      order: for each of the last axes of the weight its axis in `stored`, both counted
        from the end. Axes before these are the same in both, so that `vmap` and `scan`
        add and remove leading axes.
      leaf_axis: the axis of the leaf along which groups lie.
      casts: the dtypes to which the weight was cast, one after the other.
    """

    stored: Compressed
    order: tuple[int, ...] = field(metadata={"static": True})
    leaf_axis: int = field(metadata={"static": True})
    casts: tuple[jnp.dtype, ...] = field(default=(), metadata={"static": True})

    @property
    def permutation(self) -> tuple[int, ...]:
        """For each axis of the weight its axis in `stored`, not negative."""
        ndim = self.stored.ndim
        leading = range(ndim - len(self.order))
        return (*leading, *(axis + ndim for axis in self.order))

    @property
    def weight(self) -> Compressed:
        """The compressed weight with its axes in the order in which they are read."""
        return lax_ops.transpose(self.stored, self.permutation)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Packed:
    """The first form of a weight as one array: what devices with shards are sent of it.

    Attributes:
      array: from `pack_form`.
      axes: the axes of the weight in the order in which it is a matrix.
    """

    array: Any  # or what stands in for it in a mapped tree
    axes: tuple[int, ...] = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Accelerated:
    """A dense weight and its compressed forms, as a value in a program.

    Attributes:
      dense: the weight. What no form can compute uses it, and its gradients flow to it.
      forms: the same weight, compressed along one axis or two. They have no gradients.
      leaf: the path of the parameter.
      packed: the first form again, if a product has packed it. The gradient of its
        other operand takes the same array, so devices are sent it once.
      activation: whether it is an activation, or a gradient of one, that is mostly
        zero; `leaf` then says which.
    """

    dense: Any  # an array; None where it goes beside
    forms: tuple[Form, ...]
    leaf: str = field(metadata={"static": True})
    activation: bool = field(default=False, metadata={"static": True})
    packed: Packed | None = None


def is_accelerated(x: Any) -> TypeGuard[Accelerated]:
    """Returns whether a value has compressed forms."""
    return isinstance(x, Accelerated)


def as_dense(x: Any) -> Any:
    """Returns the array, without compressed forms."""
    return x.dense if isinstance(x, Accelerated | Rectified) else x


def with_dense(x: Any, dense: Array) -> Any:
    """Returns another array with the compressed forms of `x`, if it has any."""
    return replace(x, dense=dense) if is_accelerated(x) else dense


def map_forms(
    weight: Accelerated, dense: Array, move: Callable[[Form], Form | None]
) -> Accelerated | Array:
    """Returns another dense weight with moved forms, without those that become None."""
    forms = tuple(form for form in map(move, weight.forms) if form is not None)
    moved = replace(weight, dense=dense, forms=forms, packed=None)
    return moved if forms else dense


def cast_form(form: Form, dtype: DTypeLike) -> Form:
    """Returns the form with values in another dtype."""
    dtype = jnp.dtype(dtype)
    stored = replace(form.stored, values=form.stored.values.astype(dtype))
    return replace(form, stored=stored, casts=(*form.casts, dtype))


def transpose_form(form: Form, permutation: Sequence[int]) -> Form:
    """Returns the form of the weight with its axes permuted."""
    return _read(form, form.stored, [form.permutation[i] for i in permutation])


def scannable_form(form: Form) -> Form | None:
    """Returns the form with its first axis stored first, or None if it has groups."""
    first = form.permutation[0]
    if first == form.stored.axis % form.stored.ndim:
        return None
    return form if first == 0 else _stored_as_read(form)


def reshape_form(form: Form, shape: tuple[int, ...]) -> Form | None:
    """Returns the form of the weight in another shape, or None if groups are split.

    The bytes stay where they are stored, if the shapes allow that.
    """
    permutation = form.permutation
    old_shape = tuple(form.stored.shape[i] for i in permutation)
    pieces = sorted(
        _pieces(old_shape, shape), key=lambda p: permutation[p[0][0]] if p[0] else -1
    )
    read = [permutation[i] for old, _ in pieces for i in old]
    order = [j for _, new in pieces for j in new]  # new axes in the order of storage
    if read != list(range(len(read))):  # a piece is not stored as it is read
        form, order = _stored_as_read(form), list(range(len(shape)))
    stored = lax_ops.reshape(form.stored, tuple(shape[j] for j in order))
    if stored is None:
        return None
    return _read(form, stored, [order.index(j) for j in range(len(shape))])


def slice_form(
    form: Form, starts: Sequence[ArrayLike], sizes: Sequence[int]
) -> Form | None:
    """Returns the form of a part of the weight, or None if its group axis is cut."""
    stored, order = form.stored, form.permutation
    cut = [sizes[order.index(axis)] for axis in range(stored.ndim)]
    if cut[stored.axis] != stored.shape[stored.axis]:
        return None
    first = [starts[order.index(axis)] for axis in range(stored.ndim)]

    def part(x: Array) -> Array:
        kept = list(cut)
        kept[stored.axis] = x.shape[stored.axis]
        return lax.dynamic_slice(x, first, kept)

    return replace(form, stored=jax.tree.map(part, stored))


def form_order(permutation: Sequence[int]) -> tuple[int, ...]:
    """Returns the `order` of a form given for each axis its axis in `stored`."""
    ndim = len(permutation)
    moved = [i for i, axis in enumerate(permutation) if i != axis]
    return tuple(axis - ndim for axis in permutation[min(moved, default=ndim) :])


def _read(form: Form, stored: Compressed, permutation: Sequence[int]) -> Form:
    return replace(form, stored=stored, order=form_order(permutation))


def _stored_as_read(form: Form) -> Form:
    return replace(form, stored=form.weight, order=())


def _pieces(
    old: Sequence[int], new: Sequence[int]
) -> list[tuple[list[int], list[int]]]:
    """Returns the axes of both shapes in the smallest pieces of the same size."""
    pieces, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        start = i, j
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while (a := math.prod(old[start[0] : i])) != (
            b := math.prod(new[start[1] : j])
        ):
            i, j = (i + 1, j) if a < b else (i, j + 1)
        pieces.append(([*range(start[0], i)], [*range(start[1], j)]))
    return pieces
