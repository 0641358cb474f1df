"""Leaves that NNX holds in other variables than parameters, such as caches."""

import sys
from typing import Any

import jax

from jaxsparse._trees.paths import flatten
from jaxsparse._trees.pytree import PyTree
from jaxsparse._trees.variables import is_variable


def non_parameters(tree: PyTree) -> dict[str, str]:
    """Returns the variable's class by path of each leaf that is in no `nnx.Param`."""
    nnx: Any = sys.modules.get("flax.nnx")  # without the import there is no variable
    if nnx is None:
        return {}

    def kinds(node: Any) -> Any:
        other = is_variable(node) and not isinstance(node, nnx.Param)
        return jax.tree.map(lambda _: type(node).__name__ if other else "", node)

    by_path = flatten(jax.tree.map(kinds, tree, is_leaf=is_variable)).by_path
    return {path: kind for path, kind in by_path.items() if kind}
