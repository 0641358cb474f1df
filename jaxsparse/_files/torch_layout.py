"""Converts trees in Flax's layout to state dicts in PyTorch's and back, by names.

`mlp/up/kernel`, `(in, out)`, becomes `mlp.up.weight`, `(out, in)`; a convolution's
`(height, width, in, out)` becomes `(out, in, height, width)`. Scales of norms and
embeddings become weights too, without a transpose. Compressed weights stay compressed.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax

from jaxsparse._compressed import Compressed, code_bits, is_compressed
from jaxsparse._plans import (
    TRANSPOSED,
    LeafAxes,
    axes_from_names,
    axes_from_torch_names,
    is_embedding,
    refuse_tensors,
)
from jaxsparse._trees import PathConflictError, PyTree, array_shapes, flatten, nest


#: How a leaf is converted: for each axis of the result, the axes that are merged to it.
Move = tuple[tuple[int, ...], ...]

_TO_TORCH = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
_FROM_TORCH = {"running_mean": "mean", "running_var": "var"}


def to_torch_layout(
    params: PyTree, *, like: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Converts a tree in Flax's layout to a state dict in PyTorch's layout.

    Kernels of dense layers and convolutions become weights `(out, in, ...)`, and so do
    those of attention, which are recognised by the names of their siblings. Scales and
    embeddings become weights of the same shape; `mean` and `var` become `running_mean`
    and `running_var`. All other leaves keep their name and layout.

    Args:
      params: a tree of arrays, `Compressed` or `jax.ShapeDtypeStruct`.
      like: the state dict that `from_torch_layout` or `open_torch` converted to the
        tree: arrays or shapes by name, such as `open_tensors(path).specs`. Each leaf
        then gets back the name and the layout that it has there, whatever its own name
        would imply.

    Returns:
      The leaves by name, with dots between the parts of a name. Groups along the input
      axis lie along axis 1. Compressed leaves stay compressed.

    Raises:
      ValueError: the layout of a kernel does not follow from its name, a kernel is that
        of a transposed convolution, two leaves have the same name, groups of several
        heads of a compressed leaf share a byte, or a leaf does not fit `like`.

    >>> import jax.numpy as jnp
    >>> params = {"up": {"kernel": jnp.ones((64, 32)), "bias": jnp.ones(32)}}
    >>> {name: leaf.shape for name, leaf in to_torch_layout(params).items()}
    {'up.bias': (32,), 'up.weight': (32, 64)}
    """
    leaves = flatten(params, is_leaf=is_compressed).by_path
    if like is not None:
        return _restore_layout(like, leaves)
    shapes = array_shapes(leaves)
    axes = axes_from_names(shapes)
    state: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *modules, name = path.split("/")
        torch_name = ".".join([*modules, _TO_TORCH.get(name, name)])
        if torch_name in state:
            raise ValueError(
                f"leaf {path!r} of shape {shapes.get(path)} would have the name "
                f"{torch_name!r} of another leaf: rename it"
            )
        if name == "kernel":
            leaf = _move_axes(path, leaf, _kernel_move(path, shapes[path], axes[path]))
        elif name == "bias" and path in shapes:
            kernel = axes.get(path.removesuffix("bias") + "kernel", LeafAxes())
            if 1 < len(kernel.output) == len(shapes[path]):
                leaf = leaf.reshape(-1)
        state[torch_name] = leaf
    return state


def from_torch_layout(state: Mapping[str, Any]) -> PyTree:
    """Converts a state dict in PyTorch's layout to a tree in Flax's layout.

    Args:
      state: arrays of NumPy or JAX, `Compressed` or `jax.ShapeDtypeStruct` by name.

    Returns:
      Nested dicts. A `weight` becomes a `kernel`, transposed so that outputs come last;
      an `embedding`, if its module is named like one; or a `scale`, if it has one axis.
      If its name is ambiguous, it stays a `weight` in its own layout. Attention's
      kernels stay matrices, since names do not give the number of heads.

    Raises:
      ValueError: two leaves have the same path, or one lies within another.
      TypeError: an entry is a tensor of PyTorch.

    >>> import jax.numpy as jnp
    >>> tree = from_torch_layout({"up.weight": jnp.ones((32, 64))})
    >>> tree["up"]["kernel"].shape
    (64, 32)
    """
    refuse_tensors(state)
    moves = flax_moves({name: tuple(x.shape) for name, x in state.items()})
    try:
        return nest(
            {
                path: apply_move(name, state[name], move)
                for path, (name, move) in moves.items()
            }
        )
    except PathConflictError as error:
        name, _ = moves[error.path]
        raise ValueError(
            f"leaf {name!r} is {error.relation} another one: rename it"
        ) from None


def flax_moves(
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, tuple[str, Move | None]]:
    """Returns, by Flax's path of each leaf, its name in PyTorch and its move.

    Args:
      shapes: the shapes of PyTorch's tensors by name.

    Raises:
      ValueError: two leaves have the same path.
    """
    axes = axes_from_torch_names(shapes)
    moves: dict[str, tuple[str, Move | None]] = {}
    for name, shape in shapes.items():
        *modules, last = name.split(".")
        move = None
        if last == "weight":
            if len(shape) < 2:
                last = "scale"
            elif is_embedding(name, shapes):
                last = "embedding"
            elif axes[name].output:
                last, move = "kernel", _weight_move(shape, axes[name])
        path = "/".join([*modules, _FROM_TORCH.get(last, last)])
        if path in moves:
            raise ValueError(
                f"leaves {moves[path][0]!r} and {name!r} would both have the path "
                f"{path!r}: rename one"
            )
        moves[path] = name, move
    return moves


def apply_move(name: str, leaf: Any, move: Move | None) -> Any:
    """Returns a leaf with its axes moved, or the leaf itself if there is no move."""
    return leaf if move is None else _move_axes(name, leaf, move)


def _restore_layout(
    like: Mapping[str, Any], leaves: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns leaves, given by Flax's paths, with their names and layouts in `like`."""
    moves = flax_moves({name: tuple(x.shape) for name, x in like.items()})
    state: dict[str, Any] = {}
    for path, leaf in leaves.items():
        shape = tuple(getattr(leaf, "shape", ()))
        if path not in moves:
            raise ValueError(
                f"leaf {path!r} of shape {shape} is not in `like`, whose leaves have "
                f"paths such as {next(iter(moves), None)!r}: give the state dict that "
                "the tree came from"
            )
        name, move = moves[path]
        expected = tuple(like[name].shape)
        if move is not None:
            expected = tuple(expected[axis] for (axis,) in move)
            move = tuple((move.index((axis,)),) for axis in range(len(move)))
        if shape != expected:
            raise ValueError(
                f"leaf {path!r} has shape {shape}, but by {name!r} in `like` it must "
                f"be {expected}: give a leaf of that shape, or the state dict that the "
                "tree came from"
            )
        state[name] = apply_move(path, leaf, move)
    return state


def _kernel_move(path: str, shape: tuple[int, ...], axes: LeafAxes) -> Move:
    if len(shape) > 2 and TRANSPOSED.search(path):
        spatial = tuple(range(len(shape) - 2))
        raise ValueError(
            f"leaf {path!r} of shape {shape} is the kernel of a transposed "
            "convolution, which PyTorch stores flipped, as (in, out, ...): give "
            f"instead a leaf 'weight', moveaxis(flip(kernel, {spatial}), (-2, -1), "
            "(0, 1))"
        )
    if not axes.output:
        raise ValueError(
            f"leaf {path!r} of shape {shape} is a kernel, but its name does not "
            "determine its layout: give `like`, the state dict that the tree came "
            "from, or reshape it to (in, out)"
        )
    matrix = {*axes.output, *axes.contracted}
    spatial = ((axis,) for axis in range(len(shape)) if axis not in matrix)
    return axes.output, axes.contracted, *spatial


def _weight_move(shape: tuple[int, ...], axes: LeafAxes) -> Move:
    spatial = tuple((axis,) for axis in range(2, len(shape)))
    return *spatial, axes.contracted, axes.output


def _move_axes(name: str, leaf: Any, move: Move) -> Any:
    if not isinstance(leaf, Compressed):
        return _transpose_and_merge(leaf, move)
    group_axis = leaf.axis % leaf.ndim
    (new_axis,) = (i for i, axes in enumerate(move) if group_axis in axes)
    axes = move[new_axis]
    # Axes can only be merged with the group axis before it, and if codes fill bytes.
    outer = math.prod(leaf.shape[axis] for axis in axes if axis != group_axis)
    padded = leaf.indices.shape[group_axis] * 8 != _total_code_bits(leaf)
    if outer > 1 and (axes[-1] != group_axis or padded):
        raise ValueError(
            f"leaf {name!r} of shape {leaf.shape}, {leaf.pattern} along axis "
            f"{group_axis}, has groups of several heads in one byte: decompress it "
            "first"
        )
    moved = jax.tree.map(lambda x: _transpose_and_merge(x, move), leaf)
    return replace(moved, axis=new_axis - len(move))


def _transpose_and_merge(x: Any, move: Move) -> Any:
    permutation = [axis for axes in move for axis in axes]
    shape = [math.prod(x.shape[axis] for axis in axes) for axes in move]
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(shape, x.dtype)  # of a file, perhaps in float64
    return x.transpose(permutation).reshape(shape)


def _total_code_bits(leaf: Compressed) -> int:
    """Returns the bits of all codes along the group axis, without padding."""
    return leaf.shape[leaf.axis] // leaf.pattern.m * code_bits(leaf.pattern)
