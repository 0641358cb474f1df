"""Files of safetensors written anew, each tensor when it is its turn."""

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
    """Writes as many files as were read, with changed tensors of the same sizes.

    One tensor is in memory at a time.

    Args:
      path: what was read: a file, or the index of several.
      headers: the headers of these files.
      output: what to write, of the same kind.
      change: takes the name of a tensor and the tensor, which it may write to; returns
        one of the same shape and dtype.
    """
    sizes, metadata = list(map(_sizes, headers)), index_metadata(path)
    write_atomically(
        output,
        [partial(_changed_chunks, header, change) for header in headers],
        lambda names: index_text(names, sizes, metadata),
    )


def _changed_chunks(
    header: Header, change: Callable[[str, np.ndarray], np.ndarray]
) -> Iterator[bytes | memoryview]:
    read = lambda name: change(name, read_tensor(header, name))
    return file_chunks(header.entries, read, header.metadata)


def _sizes(header: Header) -> dict[str, int]:
    return {name: entry.nbytes for name, entry in header.entries.items()}
