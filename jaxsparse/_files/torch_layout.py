"""Trees in Flax's layout as state dicts in PyTorch's, and back, by their names.

`mlp/up/kernel`, `(in, out)`, is `mlp.up.weight`, `(out, in)`; a convolution's
`(height, width, in, out)` is `(out, in, height, width)`. Scales of norms and embeddings
are weights too, and are not turned. Compressed weights are turned as they are.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
from jaxtyping import PyTree

from jaxsparse._compressed import (
    Compressed,
    code_bits,
    is_compressed,
)
from jaxsparse._plans import (
    TRANSPOSED,
    LeafAxes,
    axes_from_names,
    axes_from_torch_names,
    is_embedding,
    refuse_tensors,
)
from jaxsparse._trees import PathConflictError, flatten, is_array, nest


#: Which axes of a leaf, merged to one, are each axis of another.
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
    """A tree in Flax's layout as a state dict in PyTorch's.

    Kernels of dense layers and convolutions, and those of attention by their siblings'
    names, become weights `(out, in, ...)`. Scales and embeddings become weights of the
    same shape, `mean` and `var` the `running_mean` and `running_var`. All other leaves
    keep name and layout.

    Args:
      params: a tree of arrays, `Compressed` or `jax.ShapeDtypeStruct`.
      like: where the tree came from, by `from_torch_layout` or `open_torch`: arrays or
        shapes by their names, such as `open_tensors(path).specs`. Each leaf then gets
        back the name and the layout that it had there, whatever names would tell.

    Returns:
      The leaves by names that are joined by dots. Groups of `n:m` that lay along the
      input axis lie along axis 1; compressed leaves stay compressed.

    Raises:
      ValueError: a kernel whose layout its name does not tell, or of a transposed
        convolution; two leaves of one name; a compressed leaf whose groups of several
        heads share a byte; or a leaf that does not fit `like`.

    >>> import jax.numpy as jnp
    >>> params = {"up": {"kernel": jnp.ones((64, 32)), "bias": jnp.ones(32)}}
    >>> {name: leaf.shape for name, leaf in to_torch_layout(params).items()}
    {'up.bias': (32,), 'up.weight': (32, 64)}
    """
    leaves, _ = flatten(params, is_leaf=is_compressed)
    if like is not None:
        return _back_to(like, leaves)
    shapes = {path: tuple(x.shape) for path, x in leaves.items() if is_array(x)}
    axes = axes_from_names(shapes)
    state: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *modules, name = path.split("/")
        torch_name = ".".join([*modules, _TO_TORCH.get(name, name)])
        if torch_name in state:
            raise ValueError(
                f"leaf {path!r} of shape {shapes.get(path)} would have the name "
                f"{torch_name!r}, which another one has: rename it"
            )
        if name == "kernel":
            leaf = _moved(path, leaf, _kernel_move(path, shapes[path], axes[path]))
        elif name == "bias" and path in shapes:
            kernel = axes.get(path.removesuffix("bias") + "kernel", LeafAxes())
            if 1 < len(kernel.output) == len(shapes[path]):
                leaf = leaf.reshape(-1)
        state[torch_name] = leaf
    return state


def from_torch_layout(state: Mapping[str, Any]) -> PyTree:
    """A state dict in PyTorch's layout as a tree in Flax's.

    Args:
      state: arrays of NumPy or JAX, `Compressed` or `jax.ShapeDtypeStruct` by their
        names.

    Returns:
      Nested dicts. A `weight` is a `kernel`, turned so that outputs come last, an
      `embedding` by the name of its module, or with one axis a `scale`. Where names do
      not tell which, it stays a `weight` in its own layout. Attention's kernels stay
      matrices, since names do not tell how many heads there are.

    Raises:
      ValueError: two leaves of one path, or one within another.
      TypeError: a tensor of PyTorch.

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
    """By Flax's path of each leaf, its name in PyTorch, and how its axes move.

    Raises:
      ValueError: two leaves of one path.
    """
    axes = axes_from_torch_names(shapes)
    found: dict[str, tuple[str, Move | None]] = {}
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
        if path in found:
            raise ValueError(
                f"leaves {found[path][0]!r} and {name!r} would both have the path "
                f"{path!r}: rename one"
            )
        found[path] = name, move
    return found


def apply_move(name: str, leaf: Any, move: Move | None) -> Any:
    """One leaf with its axes moved; none where there is no move."""
    return leaf if move is None else _moved(name, leaf, move)


def _back_to(like: Mapping[str, Any], leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by Flax's paths with the names and layouts that they have in `like`."""
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
        wanted = tuple(like[name].shape)
        if move is not None:
            wanted = tuple(wanted[axis] for (axis,) in move)
            move = tuple((move.index((axis,)),) for axis in range(len(move)))
        if shape != wanted:
            raise ValueError(
                f"leaf {path!r} has shape {shape}, by {name!r} in `like` it is "
                f"{wanted}: give a leaf of that shape, or the state dict that the tree "
                "came from"
            )
        state[name] = apply_move(path, leaf, move)
    return state


def _kernel_move(path: str, shape: tuple[int, ...], axes: LeafAxes) -> Move:
    if len(shape) > 2 and TRANSPOSED.search(path):
        spatial = tuple(range(len(shape) - 2))
        raise ValueError(
            f"leaf {path!r} of shape {shape} is the kernel of a transposed "
            "convolution, which PyTorch has flipped, as (in, out, ...): give instead "
            f"a leaf 'weight', moveaxis(flip(kernel, {spatial}), (-2, -1), (0, 1))"
        )
    if not axes.output:
        raise ValueError(
            f"leaf {path!r} of shape {shape} is a kernel whose layout its name does "
            "not tell: give `like`, the state dict that the tree came from, or "
            "reshape it to (in, out)"
        )
    matrix = {*axes.output, *axes.contracted}
    spatial = ((axis,) for axis in range(len(shape)) if axis not in matrix)
    return axes.output, axes.contracted, *spatial


def _weight_move(shape: tuple[int, ...], axes: LeafAxes) -> Move:
    spatial = tuple((axis,) for axis in range(2, len(shape)))
    return *spatial, axes.contracted, axes.output


def _moved(name: str, leaf: Any, move: Move) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.eval_shape(lambda x: _moved(name, x, move), leaf)
    if not isinstance(leaf, Compressed):
        return _merged(leaf, move)
    group = leaf.axis % leaf.ndim
    (place,) = (i for i, part in enumerate(move) if group in part)
    outer = math.prod(leaf.shape[axis] for axis in move[place] if axis != group)
    if outer > 1 and (
        move[place][-1] != group or leaf.indices.shape[group] * 8 != _code_bits(leaf)
    ):
        raise ValueError(
            f"leaf {name!r} of shape {leaf.shape}, {leaf.pattern} along axis {group}, "
            "has groups of several heads in one byte: decompress it first"
        )
    moved = [
        jax.eval_shape(lambda x: _merged(x, move), x)
        if isinstance(x, jax.ShapeDtypeStruct)
        else _merged(x, move)
        for x in (leaf.values, leaf.indices)
    ]
    return replace(leaf, values=moved[0], indices=moved[1], axis=place - len(move))


def _merged(x: Any, move: Move) -> Any:
    order = [axis for part in move for axis in part]
    shape = [math.prod(x.shape[axis] for axis in part) for part in move]
    return x.transpose(order).reshape(shape)


def _code_bits(leaf: Compressed) -> int:
    """How many bits the codes along the group axis have, without what pads them."""
    return leaf.shape[leaf.axis] // leaf.pattern.m * code_bits(leaf.pattern)
