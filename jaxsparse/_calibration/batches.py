"""Batches: the arrays of each, and what is the same in a program for all of them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax

from jaxsparse._trees import is_array


class BatchStructure(NamedTuple):
    """A batch without its arrays: hashable, if what is no array is."""

    structure: Any
    others: tuple[tuple[type, Any], ...]  # 1 and True are equal, and are not the same

    def fill(self, arrays: Iterable[Any]) -> Any:
        """The batch with these arrays."""
        rest = iter(arrays)
        leaves = [next(rest) if x is _ARRAY else x for _, x in self.others]
        return self.structure.unflatten(leaves)


#: Stands where a batch has an array.
_ARRAY = object()


def unpack(batch: Any) -> tuple[list[Any], BatchStructure]:
    """The arrays of a batch, and the rest."""
    leaves, structure = jax.tree.flatten(batch)
    others = [_ARRAY if is_array(x) else x for x in leaves]
    frame = BatchStructure(structure, tuple((type(x), x) for x in others))
    return [x for x in leaves if is_array(x)], frame


def as_args(batch: Any) -> tuple[Any, ...]:
    """The arguments that a batch is: those of a tuple, or the batch itself."""
    return batch if type(batch) is tuple else (batch,)


@contextmanager
def name_batch_in_errors(number: int, batch: Any) -> Iterator[None]:
    """Adds a batch's number and shapes to whatever is raised within."""
    try:
        yield
    except Exception as error:
        shapes = jax.tree.map(lambda x: getattr(x, "shape", x), batch)
        error.add_note(f"in batch {number}, whose shapes are {shapes}")
        raise


def progress_bar(
    stream: Iterable[Any], batches: Iterable[Any], name: str, progress: bool
) -> Iterable[Any]:
    """The same stream, with a progress bar if asked for."""
    if not progress:
        return stream
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError("a progress bar needs: python -m pip install tqdm") from None
    total = len(batches) if hasattr(batches, "__len__") else None  # pyright: ignore[reportArgumentType]
    return tqdm(stream, desc=name, total=total, unit="batch")
