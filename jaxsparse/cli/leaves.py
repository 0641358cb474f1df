"""The tensors of a file of any supported kind, read one by one as NumPy arrays."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from jaxsparse._compressed import decompress, is_compressed
from jaxsparse._files import (
    Header,
    Spec,
    index_of,
    open_orbax_arrays,
    open_tensors,
    read_leaf,
    read_orbax_array,
    read_tensor,
)
from jaxsparse.cli.console import print_note


@dataclass(frozen=True)
class Leaves:
    """The tensors of a file.

    Attributes:
      path: the file (for several files, the path of the index without `.index.json`),
        or the folder of a checkpoint.
      specs: the tensors by name, as `jax.ShapeDtypeStruct`, or `Compressed` of such.
      read: reads a tensor, decompressed; the caller may write to the array.
      headers: the headers of the safetensors files.
    """

    path: Path
    specs: Mapping[str, Spec]
    read: Callable[[str], np.ndarray]
    headers: Sequence[Header] = ()


def open_leaves(path: Path) -> Leaves:
    """Opens a safetensors file, several with an index, or an Orbax checkpoint.

    Raises:
      FileNotFoundError: the path does not exist.
      SparseFileError: a file is invalid.
      ValueError: the name of the file does not end in `.safetensors`.
    """
    if path.is_dir():
        arrays = open_orbax_arrays(path)
        specs = {name: array.spec for name, array in arrays.items()}
        return Leaves(path, specs, lambda name: read_orbax_array(arrays[name]))
    named_index, path = path != without_index(path), without_index(path)
    tensors = open_tensors(path)
    if not named_index and index_of(path).exists() and path.exists():
        print_note(f"reading {index_of(path)}, not the file {path} beside it")

    def read(name: str) -> np.ndarray:
        header, spec = tensors.headers[name], tensors.specs[name]
        if not is_compressed(spec):
            return read_tensor(header, name)
        with x64_if_needed(spec.dtype):
            return np.array(decompress(read_leaf(header, name, spec)))

    headers = {header.path: header for header in tensors.headers.values()}
    return Leaves(path, tensors.specs, read, [*headers.values()])


def without_index(path: Path) -> Path:
    """Returns the path without the `.index.json` of an index."""
    return path.parent / path.name.removesuffix(".index.json")


def x64_if_needed(dtype: np.dtype) -> AbstractContextManager:
    """Returns a context in which JAX does not narrow the dtype."""
    return jax.enable_x64(dtype.itemsize == 8)
