"""The tensors of a file of any supported kind, read one by one as NumPy arrays."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Literal

import jax
import numpy as np

from jaxsparse._compressed import decompress, is_compressed
from jaxsparse._files import (
    Header,
    SparseFile,
    Spec,
    index_of,
    is_orbax_checkpoint,
    is_other_format,
    open_orbax_arrays,
    open_tensors,
    read_leaf,
    read_orbax_array,
    read_tensor,
    weights_of,
    without_index,
)
from jaxsparse._trees import is_numeric
from jaxsparse.cli.console import print_note
from jaxsparse.cli.other_formats import conversion


#: A file, or several with their index; the folder of a model; an Orbax checkpoint.
Kind = Literal["file", "folder", "orbax"]


@dataclass(frozen=True)
class Leaves:
    """The tensors of a file.

    Attributes:
      path: the file, the index of several files, or the folder.
      kind: what the path is.
      specs: the tensors by name, as `jax.ShapeDtypeStruct`, or `Compressed` of such.
      read: reads a tensor, decompressed; the caller may write to the array.
      weights: the path of the safetensors file; if there are several, that of their
        index without `.index.json`.
      headers: the headers of the safetensors files.
    """

    path: Path
    kind: Kind
    specs: Mapping[str, Spec]
    read: Callable[[str], np.ndarray]
    weights: Path | None = None
    headers: Sequence[Header] = ()

    @property
    def bytes_of(self) -> dict[str, int]:
        """The size in bytes of each tensor by name, with all its zeros."""
        return {
            name: math.prod(spec.shape) * spec.dtype.itemsize
            for name, spec in self.specs.items()
        }

    @property
    def matrices(self) -> set[str]:
        """The names of tensors that could be pruned: numbers along two or more axes."""
        return {
            name
            for name, spec in self.specs.items()
            if is_numeric(spec) and len(spec.shape) > 1
        }


def open_leaves(path: Path) -> Leaves:
    """Opens a safetensors file, several with an index, or the folder of a model.

    Raises:
      FileNotFoundError: the path does not exist.
      SparseFileError: a file is invalid.
      ValueError: the name of the file does not end in `.safetensors`.
    """
    if path.is_dir() and is_orbax_checkpoint(path):
        return _open_orbax(path)
    if not path.is_dir():
        if advice := conversion(path):
            raise ValueError(advice)
        weights = without_index(path)
        tensors = _open_weights(weights, warns=path == weights)
        index = index_of(weights)
        path = index if index.exists() else weights
        return _leaves(path, "file", weights, tensors)
    if (weights := weights_of(path)) is not None:
        tensors = _open_weights(weights, warns=True)
        return _leaves(path, "folder", weights, tensors)
    for file in sorted(path.iterdir()):
        if is_other_format(PurePath(file.name), ()) and (advice := conversion(file)):
            raise ValueError(advice)
    return _open_orbax(path)  # raises


def _open_orbax(path: Path) -> Leaves:
    arrays = open_orbax_arrays(path)
    specs = {name: array.spec for name, array in arrays.items()}
    return Leaves(path, "orbax", specs, lambda name: read_orbax_array(arrays[name]))


def _open_weights(weights: Path, *, warns: bool) -> SparseFile:
    tensors = open_tensors(weights)
    if warns and index_of(weights).exists() and weights.exists():
        print_note(f"reading {index_of(weights)}, not the file {weights} beside it")
    return tensors


def _leaves(path: Path, kind: Kind, weights: Path, tensors: SparseFile) -> Leaves:
    headers = {header.path: header for header in tensors.headers.values()}
    return Leaves(
        path, kind, tensors.specs, partial(_read, tensors), weights, [*headers.values()]
    )


def _read(tensors: SparseFile, name: str) -> np.ndarray:
    header, spec = tensors.headers[name], tensors.specs[name]
    if not is_compressed(spec):
        return read_tensor(header, name)
    with x64_if_needed(spec.dtype):
        return np.array(decompress(read_leaf(header, name, spec)))


def x64_if_needed(dtype: np.dtype) -> AbstractContextManager:
    """Returns a context in which JAX does not narrow the dtype."""
    return jax.enable_x64(dtype.itemsize == 8)
