"""Results of a function that is traced: its arrays, and what else it returns."""

from collections.abc import Callable, Iterable
from typing import Any

import jax

from jaxsparse._trees import is_array


def split_results(
    fn: Callable[..., Any],
) -> tuple[Callable[..., list[Any]], Callable[[Iterable[Any]], Any]]:
    """Returns `fn` with the arrays among its results alone, and what completes them.

    The second function takes values in their places, and returns the results of the
    last call: these values beside all that is no array, such as a number or a text.
    """
    last: list[Any] = []

    def arrays_of(*args: Any, **kwargs: Any) -> list[Any]:
        results, structure = jax.tree.flatten(fn(*args, **kwargs))
        last[:] = structure, [None if is_array(x) else (x,) for x in results]
        return [x for x in results if is_array(x)]

    def complete(values: Iterable[Any]) -> Any:
        (structure, others), arrays = last, iter(values)
        return structure.unflatten(
            [next(arrays) if other is None else other[0] for other in others]
        )

    return arrays_of, complete
