"""Which modules are output layers by their names."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence


#: A module, by the names on the way to it.
Module = tuple[str, ...]


def head_modules(
    weights: Iterable[Sequence[str]], names: Collection[str]
) -> frozenset[Module]:
    """Returns the modules that are output layers.

    A module is not an output layer, whatever its name, if more weights hang below it
    than beside it: then it is the model.

    Args:
      weights: the names of the modules around each matrix or kernel.
      names: names of output layers, in lower case.
    """
    weights = list(weights)
    below = Counter(
        tuple(modules[: i + 1])
        for modules in weights
        for i, module in enumerate(modules)
        if module.lower() in names
    )
    return frozenset(
        module
        for module, count in below.items()
        if count == 1 or count <= len(weights) - count
    )


def in_head(modules: Sequence[str], heads: Collection[Module]) -> bool:
    """Returns whether modules lie in an output layer."""
    return any(tuple(modules[: i + 1]) in heads for i in range(len(modules)))
