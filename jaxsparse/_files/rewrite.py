"""Writes changed copies of safetensors files, one tensor at a time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace as replace_fields
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jaxsparse._files.atomic_write import write_atomically
from jaxsparse._files.checksums import CHECKSUMS
from jaxsparse._files.safetensors import Entry, Header, read_tensor, write_tensors
from jaxsparse._files.sharded_files import index_metadata, index_text


def rewrite_tensors(
    path: Path,
    headers: Sequence[Header],
    output: Path,
    change: Callable[[str, np.ndarray], np.ndarray],
    *,
    replace: bool,
) -> None:
    """Writes a changed copy of each file, and their index if there are several.

    Only one tensor is in memory at a time.

    Args:
      path: the path of the file, or of the several files that its index names.
      headers: the headers of these files.
      output: the path to write to.
      change: returns the tensor to write, given the name of a tensor and the tensor,
        which it may write to. The result must have the same shape and dtype.
      replace: whether the output may exist.

    Raises:
      FileExistsError: the output exists and is not to be replaced.
    """
    sizes, metadata = list(map(_sizes, headers)), index_metadata(path)
    write_atomically(
        output,
        [partial(write_changed_file, header, change) for header in headers],
        lambda names: index_text(names, sizes, metadata),
        replace=replace,
    )


def write_changed_file(
    header: Header,
    change: Callable[[str, np.ndarray], np.ndarray],
    file: BinaryIO,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Writes a changed copy of a file; see `rewrite_tensors`.

    Args:
      header: the header of the file.
      change: returns the tensor to write.
      file: the file to write.
      shapes: the shapes of the tensors that `change` gives another one, by name.
    """
    write_tensors(
        file,
        with_shapes(header, shapes or {}),
        lambda name: change(name, read_tensor(header, name)),
        header.metadata,
        checksums=CHECKSUMS in header.metadata,
    )


def with_shapes(
    header: Header, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Entry]:
    """Returns the tensors of a file, some of them with other shapes."""
    return {
        name: replace_fields(entry, shape=shapes.get(name, entry.shape))
        for name, entry in header.entries.items()
    }


def _sizes(header: Header) -> dict[str, int]:
    return {name: entry.nbytes for name, entry in header.entries.items()}
