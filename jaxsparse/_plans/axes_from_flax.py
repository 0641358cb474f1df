"""Axes of a leaf from the names that Flax gives its layers.

A kernel of rank three may belong to a convolution, to attention or to a stack of dense
layers. Names decide only if module names, or siblings with matching shapes, determine
the layer; every other leaf is ambiguous.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from jaxsparse._plans.leaf_axes import LeafAxes
from jaxsparse._plans.roles_from_names import roles_from_names
from jaxsparse._trees import PyTree, array_shapes, flatten, map_named


_HEADS = {"head", "lm_head", "logits"}
_ATTENTION = ("query", "key", "value", "out")


def axes_from_names(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, LeafAxes]:
    """Returns the axes of every leaf, from canonical paths and shapes."""
    roles = roles_from_names(shapes, _HEADS)
    return {
        path: replace(_leaf_axes(path, shape, shapes), role=roles.get(path))
        for path, shape in shapes.items()
    }


def flax_axes(params: PyTree) -> PyTree:
    """Returns the group axis of every leaf, according to Flax's names.

    Rules, the size rule and `dense_head` are applied later, by `plan_sparsity`.

    Args:
      params: a tree of arrays or `jax.ShapeDtypeStruct`, from Linen or NNX.

    Returns:
      A tree of the same structure with an axis for each leaf, or None where names
      determine no single axis (biases, norms, embeddings, depthwise convolutions,
      ambiguous leaves).

    >>> import jax
    >>> params = {"Dense_0": {"kernel": jax.ShapeDtypeStruct((64, 32), "float32"),
    ...                       "bias": jax.ShapeDtypeStruct((32,), "float32")}}
    >>> flax_axes(params)
    {'Dense_0': {'bias': None, 'kernel': 0}}
    """
    axes = axes_from_names(array_shapes(flatten(params).by_path))
    return map_named(lambda path, _: axes[path].group if path in axes else None, params)


def _leaf_axes(
    path: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]
) -> LeafAxes:
    *modules, name = path.split("/")
    module = modules[-1] if modules else ""
    rank = len(shape)
    if name == "embedding":
        return LeafAxes(reason="embedding")
    if rank < 2 or name in ("bias", "scale"):
        return LeafAxes(reason="bias, norm or scalar")
    if name != "kernel":
        return _ambiguous(f"{name!r} of rank {rank}")

    if rank == 2 and not re.match(r"einsum|densegeneral", module, re.IGNORECASE):
        return LeafAxes(group=0, contracted=(0,), output=(1,))
    if 3 <= rank <= 5 and module.lower().startswith("conv"):
        inner, outer = (rank - 2,), (rank - 1,)
        if _is_transposed_kernel(modules, shape, shapes):
            inner, outer = outer, inner
        if shape[inner[0]] == 1:
            reason = "depthwise convolution or one input channel"
            return LeafAxes(contracted=inner, output=outer, reason=reason)
        return LeafAxes(group=inner[0], contracted=inner, output=outer)
    if module in _ATTENTION and _is_attention(modules, shapes):
        if module == "out":
            return LeafAxes(group=1, contracted=(0, 1), output=(2,))
        return LeafAxes(group=0, contracted=(0,), output=(1, 2))
    return _ambiguous(f"a kernel of rank {rank} in {module!r}")


def _is_transposed_kernel(
    modules: list[str], shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]
) -> bool:
    """Returns whether the bias shows that outputs are the last axis but one.

    They are in a transposed convolution with `transpose_kernel=True`.
    """
    if not modules[-1].lower().startswith("convtranspose"):
        return False
    bias = shapes.get("/".join([*modules, "bias"]))
    return bias == shape[-2:-1] != shape[-1:]


def _is_attention(modules: list[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Returns whether query, key, value and out are siblings with matching shapes.

    Query, key and value are `(embed, heads, dim)`, out is `(heads, dim, embed)`.
    """
    siblings = ["/".join([*modules[:-1], name, "kernel"]) for name in _ATTENTION]
    if not all(len(shapes.get(path, ())) == 3 for path in siblings):
        return False
    query, key, value, out = (shapes[path] for path in siblings)
    return query[1:] == key[1:] == value[1:] == out[:2]


def _ambiguous(what: str) -> LeafAxes:
    return LeafAxes(reason=f"ambiguous: {what}", remedy="fn_or_axis")
