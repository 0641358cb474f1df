"""The leaves of a file, whatever it is, read one by one as NumPy arrays."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from jaxsparse._compressed import decompress, is_compressed
from jaxsparse._files import (
    Header,
    Spec,
    index_of,
    open_tensors,
    read_leaf,
    read_orbax_array,
    read_orbax_arrays,
    read_tensor,
)
from jaxsparse.cli.console import print_note


@dataclass(frozen=True)
class Leaves:
    """What a file has.

    Attributes:
      path: the file, whose index has `.index.json` behind it, or a checkpoint's folder.
      specs: shape and dtype of each leaf, or `Compressed` of such, by name.
      read: gives a leaf, with its zeros: an array that the caller may write to.
      headers: those of safetensors files, none twice.
    """

    path: Path
    specs: Mapping[str, Spec]
    read: Callable[[str], np.ndarray]
    headers: Sequence[Header] = ()


def open_leaves(path: Path) -> Leaves:
    """The leaves of a safetensors file, of several with an index, or of Orbax.

    Raises:
      FileNotFoundError: there is nothing.
      SparseFileError: what is there is not valid.
      ValueError: it is no such file by its name.
    """
    if path.is_dir():
        arrays = read_orbax_arrays(path)
        specs = {name: array.spec for name, array in arrays.items()}
        return Leaves(path, specs, lambda name: read_orbax_array(arrays[name]))
    given, path = path, without_index(path)
    tensors = open_tensors(path)
    if given == path and index_of(path).exists() and path.exists():
        print_note(f"{index_of(path)} is what is read, not {path} beside it")

    def read(name: str) -> np.ndarray:
        header, spec = tensors.headers[name], tensors.specs[name]
        if not is_compressed(spec):
            return read_tensor(header, name)
        with as_wide_as(spec.dtype):
            return np.array(decompress(read_leaf(header, name, spec)))

    headers = {header.path: header for header in tensors.headers.values()}
    return Leaves(path, tensors.specs, read, [*headers.values()])


def without_index(path: Path) -> Path:
    """The path that an index belongs to; any other one as it is."""
    return path.parent / path.name.removesuffix(".index.json")


def as_wide_as(dtype: np.dtype):
    """A context in which JAX does not narrow this dtype."""
    return jax.enable_x64(dtype.itemsize == 8)
