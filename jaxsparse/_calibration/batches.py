"""Batches: their arrays, and the static rest that a compiled program depends on."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxsparse._trees import is_array


class BatchStructure(NamedTuple):
    """A batch without its arrays; hashable if its leaves that are not arrays are.

    Attributes:
      structure: the batch's tree structure.
      leaves: the type and the value of each leaf, with a marker for each array. The
        type tells `1` from `True`, which compare equal.
    """

    structure: Any
    leaves: tuple[tuple[type, Any], ...]

    def fill(self, arrays: Iterable[Any]) -> Any:
        """Returns the batch with these arrays."""
        remaining = iter(arrays)
        leaves = [next(remaining) if x is _ARRAY else x for _, x in self.leaves]
        return self.structure.unflatten(leaves)


#: Marks an array among the leaves of a `BatchStructure`.
_ARRAY = object()


def unpack(batch: Any) -> tuple[list[Any], BatchStructure]:
    """Returns the arrays of a batch, and its structure without them."""
    leaves, structure = jax.tree.flatten(batch)
    static = [_ARRAY if is_array(x) else x for x in leaves]
    batch_structure = BatchStructure(structure, tuple((type(x), x) for x in static))
    return [x for x in leaves if is_array(x)], batch_structure


def signature(batch: Any) -> Any:
    """Returns what batches that share a program have in common."""
    arrays, structure = unpack(batch)
    return structure, tuple((x.shape, x.dtype) for x in arrays)


def as_args(batch: Any) -> tuple[Any, ...]:
    """Returns a batch as arguments: itself if it is a tuple, else the only one."""
    return batch if type(batch) is tuple else (batch,)


def token_weights(weights: Callable[..., Any] | None, batch: Any) -> Array | None:
    """Returns the weights of a batch's tokens; None without a function of weights."""
    return None if weights is None else jnp.asarray(weights(*as_args(batch)))


@contextmanager
def name_batch_in_errors(number: int, batch: Any) -> Iterator[None]:
    """Adds the number and the shapes of a batch to any error raised inside."""
    try:
        yield
    except Exception as error:
        shapes = jax.tree.map(lambda x: getattr(x, "shape", x), batch)
        error.add_note(f"in batch {number}, whose shapes are {shapes}")
        raise


def progress_bar(
    stream: Iterable[Any], batches: Iterable[Any], name: str, progress: bool
) -> Iterable[Any]:
    """Returns the stream, wrapped in a progress bar if `progress`.

    Args:
      stream: what is iterated over.
      batches: an iterable with as many elements, for the total if it has a length.
      name: the label of the bar.
      progress: whether to show the bar.

    Raises:
      ImportError: tqdm is not installed.
    """
    if not progress:
        return stream
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError(
            "progress=True needs tqdm: python -m pip install tqdm"
        ) from None
    total = len(batches) if hasattr(batches, "__len__") else None  # pyright: ignore[reportArgumentType]
    return tqdm(stream, desc=name, total=total, unit="batch")
