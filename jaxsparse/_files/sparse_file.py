"""Sparse trees as files: safetensors, in which n:m weights are without their zeros.

`save_sparse`, `load_sparse`, and `open_sparse` for single leaves; `open_tensors` for
the files of others. A leaf is a tensor named by its canonical path, `mlp/kernel`; a
compressed one is two, `mlp/kernel/values` and `mlp/kernel/indices`, and the metadata
have its pattern, axis, shape and dtype.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxsparse._compressed import Compressed, is_compressed
from jaxsparse._files.atomic_write import Chunks, write_atomically
from jaxsparse._files.leaves import (
    Spec,
    check_leaves,
    describe,
    has_leaf_metadata,
    read_leaf,
    read_specs,
    tensor_specs,
    tensors_by_name,
)
from jaxsparse._files.safetensors import (
    Header,
    SparseFileError as SparseFileError,
    file_chunks,
)
from jaxsparse._files.sharded_files import (
    check_total,
    checked_path,
    index_text,
    read_headers,
)
from jaxsparse._trees import PathConflictError, flatten, is_array, nest


if TYPE_CHECKING:
    _Leaves = Mapping[str, Array | Compressed]
else:
    _Leaves = Mapping  # without parameters: a check of types would read a leaf


@dataclass(frozen=True, eq=False)
class SparseFile(_Leaves):
    """The leaves of a saved tree by their paths, each read when it is asked for.

    Attributes:
      specs: the leaves as `jax.ShapeDtypeStruct`, or `Compressed` of such.
      headers: the header of the file that each leaf is in.
    """

    specs: Mapping[str, Spec]
    headers: Mapping[str, Header]

    def __getitem__(self, path: str) -> Array | Compressed:
        return read_leaf(self.headers[path], path, self.specs[path])

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


def save_sparse(
    path: str | os.PathLike[str], tree: PyTree, *, max_file_bytes: int = 5 * 10**9
) -> None:
    """Saves a tree of arrays and compressed weights as safetensors.

    Until all of it is on the disk, what was at the path before is what is loaded from
    there. One process at a time may save to a path.

    Args:
      path: where to: a name that ends in `.safetensors`, in a folder that is there.
      tree: arrays and `Compressed`, in any containers; see `compress_params`.
      max_file_bytes: a larger tree is split into several files beside the path, with an
        index, `model.safetensors.index.json`; a larger leaf has a file of its own.

    Raises:
      ValueError: another ending, or two tensors of one name.
      TypeError: a leaf that is no array, or of a dtype that the format does not have.

    >>> import tempfile
    >>> from jaxsparse import compress_params
    >>> params = compress_params({"kernel": jnp.ones((64, 32)), "bias": jnp.ones(32)})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_sparse(f"{folder}/model.safetensors", params)
    ...     loaded = load_sparse(f"{folder}/model.safetensors")
    >>> loaded["kernel"].shape, loaded["kernel"].pattern
    ((64, 32), NM(n=2, m=4, transposable=False))
    """
    leaves, _ = flatten(tree, is_leaf=is_compressed)
    save_leaves(Path(path), leaves, max_file_bytes=max_file_bytes)


def save_leaves(
    path: Path,
    leaves: Mapping[str, Any],
    *,
    max_file_bytes: int,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Saves leaves by their paths; for the rest see `save_sparse`."""
    checked_path(path)
    check_leaves(leaves)
    parts = _split(leaves, max_file_bytes)
    write_atomically(
        path,
        [partial(_file_of, part, metadata or {}) for part in parts],
        lambda names: index_text(names, list(map(_sizes, parts))),
    )


def load_sparse(path: str | os.PathLike[str], *, like: PyTree | None = None) -> PyTree:
    """Loads a tree that `save_sparse` saved, all of it or nothing.

    Args:
      path: where it was saved to.
      like: a tree of arrays, `Compressed` or `jax.ShapeDtypeStruct` with the same
        paths, shapes and dtypes, whose containers the leaves are put into. In the place
        of an array may come what is compressed in the file.

    Returns:
      The leaves on the default device, in the containers of `like`, or in nested dicts
      by their paths.

    Raises:
      FileNotFoundError: nothing was saved there.
      SparseFileError: what is there is not what was saved, as far as headers and index
        tell, or does not fit `like`; a `ValueError` that names the file and the cause.
    """
    found = open_sparse(path)
    if like is None:
        return _nested(Path(path), dict(found))
    wanted, structure = flatten(like, is_leaf=is_compressed)
    _check_like(Path(path), wanted, found.specs)
    return structure.unflatten([found[name] for name in wanted])


def open_sparse(path: str | os.PathLike[str]) -> SparseFile:
    """The leaves of a saved tree by their paths, each read when it is asked for.

    All headers are read and checked at once. If a file changes afterwards, its leaves
    are no longer given out.

    Args:
      path: where the tree was saved to.

    Raises:
      FileNotFoundError: nothing was saved there.
      SparseFileError: what is there is not what was saved.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_sparse(f"{folder}/model.safetensors", {"mlp": {"bias": jnp.ones(2)}})
    ...     leaves = open_sparse(f"{folder}/model.safetensors")
    ...     list(leaves), leaves["mlp/bias"]
    (['mlp/bias'], Array([1., 1.], dtype=float32))
    """
    path = Path(path)
    headers = read_headers(path)
    found = _opened(headers, read_specs)
    check_total(path, headers)
    return found


def open_tensors(path: str | os.PathLike[str]) -> SparseFile:
    """The tensors of any safetensors file by their names, read when they are asked for.

    One file, or several with the index that Hugging Face has. Of a file that
    `save_sparse` wrote these are the leaves, compressed ones too.

    Args:
      path: the file, `model.safetensors`; the index is `model.safetensors.index.json`.

    Raises:
      FileNotFoundError: there is none.
      SparseFileError: a file or the index does not hold together.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_sparse(f"{folder}/model.safetensors", {"up.weight": jnp.ones((8, 16))})
    ...     open_tensors(f"{folder}/model.safetensors").specs["up.weight"]
    ShapeDtypeStruct(shape=(8, 16), dtype=float32)
    """
    headers = read_headers(Path(path))
    ours = any(map(has_leaf_metadata, headers))
    return _opened(headers, read_specs if ours else tensor_specs)


def _opened(
    headers: Iterable[Header], specs_of: Callable[[Header], dict[str, Spec]]
) -> SparseFile:
    specs: dict[str, Spec] = {}
    places: dict[str, Header] = {}
    for header in headers:
        found = specs_of(header)
        if twice := specs.keys() & found.keys():
            cause = f"leaves {sorted(twice)} are in another file too"
            raise SparseFileError(header.path, cause)
        specs |= found
        places |= dict.fromkeys(found, header)
    return SparseFile(specs, places)


def _file_of(leaves: Mapping[str, Any], metadata: Mapping[str, str]) -> Chunks:
    tensors = tensors_by_name(leaves)
    return file_chunks(tensors, tensors.__getitem__, {**describe(leaves), **metadata})


def _split(leaves: Mapping[str, Any], most: int) -> list[dict[str, Any]]:
    """The leaves file by file, in order; the tensors of a leaf stay together."""
    parts: list[dict[str, Any]] = [{}]
    room = most
    for path, leaf in leaves.items():
        size = sum(_sizes({path: leaf}).values())
        if size > room and parts[-1]:
            parts.append({})
            room = most
        parts[-1][path] = leaf
        room -= size
    return parts


def _sizes(leaves: Mapping[str, Any]) -> dict[str, int]:
    """The bytes of each tensor, by name."""
    return {
        name: x.size * x.dtype.itemsize for name, x in tensors_by_name(leaves).items()
    }


def _nested(file: Path, leaves: dict[str, Any]) -> PyTree:
    if list(leaves) == [""]:  # a tree that is one leaf
        return leaves[""]
    try:
        return nest(leaves)
    except PathConflictError as error:
        raise SparseFileError(file, f"{error}: give a tree with `like`") from None


def _check_like(
    file: Path, wanted: Mapping[str, Any], specs: Mapping[str, Spec]
) -> None:
    for path in sorted(wanted.keys() | specs.keys()):
        mine, found = wanted.get(path), specs.get(path)
        as_stored = isinstance(mine, Compressed)
        if _text(mine, as_stored) != _text(found, as_stored):
            cause = f"leaf {path!r} is {_text(found)}, wanted is {_text(mine)}"
            raise SparseFileError(file, cause)


def _text(leaf: Any, as_stored: bool = True) -> str:
    if not is_array(leaf):
        return "missing" if leaf is None else repr(leaf)
    text = f"{jnp.dtype(leaf.dtype).name}{list(leaf.shape)}"
    if isinstance(leaf, Compressed) and as_stored:
        text += f" of {leaf.pattern} along axis {leaf.axis}"
    return text
