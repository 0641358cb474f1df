"""Leaves by their canonical path, independent of the containers of a tree.

A path is the names of the keys that lead to a leaf, joined by `/`. Optimizers and
frameworks change the containers between `init` and `update` (NNX strips its `Param`
boxes, `optax.masked` replaces leaves by `MaskedNode`), so trees are matched by path and
never by structure.
"""

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeGuard, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.core import ShapedArray, Tracer
from jax.tree_util import (
    DictKey,
    FlattenedIndexKey,
    GetAttrKey,
    SequenceKey,
    tree_flatten_with_path,
    treedef_children,
)
from jaxtyping import Array, PyTree

from jaxsparse._trees.stand_in import StandIn
from jaxsparse._trees.variables import is_variable


_Leaf = TypeVar("_Leaf")

#: JAX's keys on the way to a leaf.
Keys = tuple[Any, ...]

#: The last key on the way to what a variable of NNX holds.
_BOX = GetAttrKey("value")


def path_name(path: tuple[Any, ...]) -> str:
    """Returns the names of keys, joined by `/`.

    >>> path_name((DictKey("mlp"), SequenceKey(0), GetAttrKey("kernel")))
    'mlp/0/kernel'
    """
    return "/".join(map(_key_name, path))


def without_box(path: Keys) -> Keys:
    """The keys without the `value` of a box, in which NNX hands leaves to `init`."""
    return path[:-1] if path and path[-1] == _BOX else path


def _key_name(key) -> str:
    match key:
        case DictKey() | FlattenedIndexKey():
            return str(key.key)
        case GetAttrKey():
            return key.name
        case SequenceKey():
            return str(key.idx)
        case _:
            return str(key)


class Leaves(NamedTuple):
    """The leaves of a tree by canonical path, in order, and the tree's structure."""

    by_path: dict[str, Any]
    structure: Any

    def unflatten(self, leaves: Mapping[str, Any]) -> PyTree:
        """The tree with these leaves, by path, in place of its own."""
        return self.structure.unflatten([leaves[path] for path in self.by_path])


def flatten(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> Leaves:
    """The leaves of a tree keyed by canonical path, in order, and its structure.

    Raises:
      ValueError: two leaves have the same path, an NNX module shares a variable, or a
        `StandIn` is not a leaf by `is_leaf`.
    """
    return flatten_with_keys(tree, is_leaf)[0]


def flatten_with_keys(
    tree: PyTree, is_leaf: Callable[[Any], bool] | None = None
) -> tuple[Leaves, dict[Keys, str]]:
    """As `flatten`; and the canonical paths by JAX's keys, which tell containers apart.

    `Leaves` of parameters and these paths are all that a step of training needs of a
    tree, so that it is flattened once.
    """
    leaves, structure = _walk(tree, is_leaf)
    if any(path and path[-1] == _BOX for path, _ in leaves):
        refuse_shared_variables(tree)
    by_path = _by_name(leaves, structure)
    keys = (without_box(path) for path, _ in leaves)
    return Leaves(by_path, structure), dict(zip(keys, by_path, strict=True))


def flatten_as(tree: PyTree, other: Leaves) -> Leaves:
    """The leaves of a tree that most likely has the structure of another one.

    If so its paths are those of the other one, and need not be spelled again.
    """
    leaves, structure = jax.tree.flatten(tree)
    if structure != other.structure:
        return flatten(tree)
    return Leaves(dict(zip(other.by_path, leaves, strict=True)), structure)


def array_shapes(leaves: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of those leaves that are arrays, by path."""
    return {path: tuple(x.shape) for path, x in leaves.items() if is_array(x)}


def flatten_masks(masks: PyTree) -> dict[str, Any]:
    """Returns the entries of a tree of masks by canonical path, None for a dense leaf.

    `optax.masked` and `optax.partition` replace leaves and masks alike by `MaskedNode`,
    which reads as None.
    """
    entries = _by_name(*_walk(masks, is_dense_entry))
    return {
        name: None if is_dense_entry(mask) else mask for name, mask in entries.items()
    }


def replace_masks(tree: PyTree, masks: Mapping[str, Any]) -> PyTree:
    """A tree of masks with other masks, by path, instead of its own."""
    return flatten(tree).unflatten(masks)


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dicts that hold each leaf at its path.

    Raises:
      PathConflictError: one leaf would be inside another.

    >>> nest({"mlp/kernel": 1, "mlp/bias": 2, "scale": 3})
    {'mlp': {'kernel': 1, 'bias': 2}, 'scale': 3}
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise PathConflictError(path, "within")
        if name in node:
            raise PathConflictError(path, "around")
        node[name] = leaf
    return tree


class PathConflictError(ValueError):
    """Two leaves cannot share a nested dict: one's path begins with the other's.

    Attributes:
      path: the path of the leaf that came second.
      relation: whether it is `"within"` or `"around"` the first.
    """

    def __init__(self, path: str, relation: Literal["within", "around"]):
        super().__init__(f"leaf {path!r} is {relation} another one")
        self.path = path
        self.relation = relation


def is_dense_entry(mask: Any) -> bool:
    """Whether an entry of a tree of masks marks a leaf that stays dense."""
    return mask is None or isinstance(mask, optax.MaskedNode)


def map_named(f: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
    """Maps `f(path, leaf)` over a tree; `f` may return `None`."""
    leaves = flatten(tree)
    return leaves.unflatten({path: f(path, x) for path, x in leaves.by_path.items()})


def is_array(leaf: Any) -> bool:
    """Whether a leaf has a shape and a dtype: arrays, tracers, `ShapeDtypeStruct`."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def is_abstract(leaf: Any) -> bool:
    """Returns whether a leaf has a shape and a dtype, and never has values.

    Tracers are not abstract: they have values where the program runs.
    """
    return isinstance(leaf, jax.ShapeDtypeStruct | ShapedArray)


def require_values(path: str, leaf: Any) -> None:
    """Raises if a leaf is abstract, or was deleted; the error names the leaf.

    Raises:
      TypeError: it is abstract.
      RuntimeError: its memory was donated.
    """
    is_concrete = isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)
    if is_concrete and leaf.is_deleted():
        raise RuntimeError(
            f"leaf {path!r} of shape {leaf.shape} was deleted: its memory was donated, "
            "by donate_argnums or by mask_params(..., donate=True). Go on with the "
            "tree that this call returned"
        )
    if is_abstract(leaf):
        raise TypeError(
            f"leaf {path!r} of shape {tuple(leaf.shape)} is a {type(leaf).__name__}, "
            "which has no values: give arrays, or call this within jax.eval_shape"
        )


def refuse_shared_variables(tree: PyTree) -> None:
    """Raises if mapping over `tree` would untie a shared layer of an NNX module."""
    if "flax.nnx" not in sys.modules:  # without the import there is no module
        return
    nodes, _ = tree_flatten_with_path(tree, is_leaf=is_variable)
    seen: dict[int, str] = {}
    for path, node in filter(lambda item: is_variable(item[1]), nodes):
        name = path_name(path)
        if (first := seen.setdefault(id(node), name)) != name:
            raise ValueError(
                f"the module shares {first!r} and {name!r}; a tree function would "
                "untie them. Take state = nnx.state(model, nnx.Param), map over that, "
                "and write the result back with nnx.update(model, state)"
            )


def _walk(
    tree: PyTree, is_leaf: Callable[[Any], bool] | None
) -> tuple[list[tuple[Any, Any]], Any]:
    """Returns the leaves with JAX's keys, and the structure; refuses stand-ins."""
    asked = is_leaf or (lambda _: False)
    leaves, structure = tree_flatten_with_path(
        tree, is_leaf=lambda node: isinstance(node, StandIn) or asked(node)
    )
    nodes = [x for x in leaves if isinstance(x[1], StandIn) and not asked(x[1])]
    for path, node in nodes:
        if jax.tree.leaves(node):
            raise ValueError(
                f"leaf {path_name(without_box(path))!r} of shape {node.shape} "
                f"{node.refusal}"
            )
    if nodes:  # all are empty, as `optax.partition` leaves them
        return tree_flatten_with_path(tree, is_leaf=is_leaf)
    return leaves, structure


def _by_name(leaves: list[tuple[Any, _Leaf]], structure: Any) -> dict[str, _Leaf]:
    """Returns leaves by canonical path: the names of their keys, without a box."""
    boxed: Iterable[bool] = itertools.repeat(False)
    if any(path and path[-1] == _BOX for path, _ in leaves):
        boxed = _only_children(structure)
    named: dict[str, _Leaf] = {}
    for (path, leaf), in_box in zip(leaves, boxed, strict=False):
        name = path_name(without_box(path) if in_box else path)
        if name in named:
            raise ValueError(
                f"two leaves have the path {name!r} ({jax.tree_util.keystr(path)} is "
                "the second): rename one, since leaves are matched by path"
            )
        named[name] = leaf
    return named


def _only_children(structure: Any, alone: bool = False) -> Iterator[bool]:
    """Yields for each leaf whether its container has no other child.

    A box holds one variable; an attention module may have a `value` beside a `key`.
    Children that are None or `MaskedNode` count, so that a tree and its masks agree.
    """
    children = treedef_children(structure)
    if not children:  # a leaf, or an empty container
        yield from [alone] * structure.num_leaves
    for child in children:
        yield from _only_children(child, len(children) == 1)


def is_numeric(leaf: Any) -> TypeGuard[Array]:
    """Whether a leaf is an array of real floats or integers."""
    return is_array(leaf) and (
        jnp.issubdtype(leaf.dtype, jnp.floating)
        or jnp.issubdtype(leaf.dtype, jnp.integer)
    )
