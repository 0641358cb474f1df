"""Writes changed copies of safetensors files, one tensor at a time."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from jaxsparse._files.atomic_write import write_atomically
from jaxsparse._files.safetensors import Header, file_chunks, read_tensor
from jaxsparse._files.sharded_files import index_metadata, index_text


def rewrite_tensors(
    path: Path,
    headers: Sequence[Header],
    output: Path,
    change: Callable[[str, np.ndarray], np.ndarray],
) -> None:
    """Writes a changed copy of each file, and their index if there are several.

    Only one tensor is in memory at a time.

    Args:
      path: the path of the file, or of the several files that its index names.
      headers: the headers of these files.
      output: the path to write to.
      change: returns the tensor to write, given the name of a tensor and the tensor,
        which it may write to. The result must have the same shape and dtype.
    """
    sizes, metadata = list(map(_sizes, headers)), index_metadata(path)
    write_atomically(
        output,
        [partial(changed_chunks, header, change) for header in headers],
        lambda names: index_text(names, sizes, metadata),
    )


def changed_chunks(
    header: Header, change: Callable[[str, np.ndarray], np.ndarray]
) -> Iterator[bytes | memoryview]:
    """Yields a changed copy of a file, chunk by chunk; see `rewrite_tensors`."""

    def read_changed(name: str) -> np.ndarray:
        return change(name, read_tensor(header, name))

    return file_chunks(header.entries, read_changed, header.metadata)


def _sizes(header: Header) -> dict[str, int]:
    return {name: entry.nbytes for name, entry in header.entries.items()}
