"""NNX variables: boxes in a tree, of which a function may change the values in place.

A traced function has copies of its arguments. What it changes in them would be lost.
"""

import operator
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.tree_util import keystr, tree_flatten_with_path
from jaxtyping import PyTree


def is_variable(node: Any) -> bool:
    """Returns whether a node of a tree is a variable of NNX."""
    nnx: Any = sys.modules.get("flax.nnx")  # without the import there is none
    return nnx is not None and isinstance(node, nnx.Variable)


def with_changes(
    fn: Callable[..., Any],
) -> Callable[..., tuple[Any, dict[int, Any]]]:
    """Returns `fn` with a second result: what it changes, for `change_variables`."""

    def run(*args: Any, **kwargs: Any) -> tuple[Any, dict[int, Any]]:
        variables = _variables((args, kwargs))
        before = [jax.tree.flatten(x.get_raw_value()) for x in variables]
        result = fn(*args, **kwargs)
        after = [x.get_raw_value() for x in variables]
        pairs = enumerate(zip(before, after, strict=True))
        return result, {i: new for i, (old, new) in pairs if _differs(new, *old)}

    return run


def change_variables(
    changes: Mapping[int, Any], /, *args: PyTree, **kwargs: PyTree
) -> None:
    """Makes the changes that `with_changes(fn)` found, in other copies of arguments.

    Raises:
      ValueError: a variable that changes is passed twice. As copies, neither sees what
        happens to the other.
    """
    variables = _variables((args, kwargs))
    passed = Counter(map(id, variables))
    for i, value in changes.items():
        if passed[id(variables[i])] > 1:
            raise ValueError(
                f"fn changes a {type(variables[i]).__name__} of shape "
                f"{getattr(value, 'shape', ())} that its arguments hold more than "
                f"once, as {_places(variables[i], args, kwargs)}: pass it once, or "
                "without what shares it"
            )
    for i, value in changes.items():
        variables[i].set_raw_value(value)


def _places(variable: Any, args: PyTree, kwargs: PyTree) -> str:
    """Returns where among the arguments a variable is, such as `[0]['scale']`."""
    nodes, _ = tree_flatten_with_path((args, kwargs), is_leaf=is_variable)
    return " and ".join(keystr(path[1:]) for path, node in nodes if node is variable)


def _differs(value: PyTree, leaves: list[Any], structure: Any) -> bool:
    """Returns whether a value no longer has the same leaves, in the same structure.

    Leaves are compared by identity. The value itself may be the same dict as before, of
    which only the contents changed: `nnx.capture` fills dicts in place.
    """
    new_leaves, new_structure = jax.tree.flatten(value)
    return new_structure != structure or any(map(operator.is_not, new_leaves, leaves))


def _variables(tree: PyTree) -> list[Any]:
    return [x for x in jax.tree.leaves(tree, is_leaf=is_variable) if is_variable(x)]
