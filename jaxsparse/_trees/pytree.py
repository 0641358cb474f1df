"""The type of a tree of arrays."""

from typing import TYPE_CHECKING, Any, TypeAlias


if TYPE_CHECKING:
    PyTree: TypeAlias = Any  # jaxtyping's is an unknown type to strict type checkers
else:
    from jaxtyping import PyTree as PyTree
