"""Sparse trees as safetensors files, with n:m weights stored without their zeros.

`save_sparse` and `load_sparse` are for whole trees, `open_sparse` for single leaves,
and `open_tensors` for files of other programs. A leaf is stored as a tensor named by
its canonical path, `mlp/kernel`. A compressed leaf is stored as two,
`mlp/kernel/values` and `mlp/kernel/indices`, and if it is quantized also as
`mlp/kernel/scales`; its pattern, axis, shape and dtype are in the metadata.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import jax.numpy as jnp
from jaxtyping import Array

from jaxsparse._compressed import Compressed, is_compressed
from jaxsparse._files.atomic_write import write_atomically
from jaxsparse._files.leaves import (
    Spec,
    check_leaves,
    has_leaf_metadata,
    leaf_metadata,
    read_leaf,
    read_specs,
    tensor_specs,
    tensors_by_name,
)
from jaxsparse._files.parse import SparseFileError as SparseFileError
from jaxsparse._files.safetensors import Header, write_tensors
from jaxsparse._files.sharded_files import (
    check_total,
    checked_path,
    index_text,
    read_headers,
)
from jaxsparse._trees import PathConflictError, PyTree, flatten, is_array, nest


if TYPE_CHECKING:
    _Leaves = Mapping[str, Array | Compressed]
else:
    _Leaves = Mapping  # without parameters: a check of types would read a leaf


@dataclass(frozen=True, eq=False)
class SparseFile(_Leaves):
    """The leaves of a saved tree by path, each read on access.

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

    The save is atomic: until all of it is on disk, the path still loads the previous
    tree. Processes and threads of one machine that save to the same path wait for each
    other, and the last one wins. The file has a checksum of every tensor.

    Args:
      path: the file to write. Its name must end in `.safetensors`, and its folder must
        exist.
      tree: a tree of arrays and `Compressed` in any containers; see `compress_params`.
      max_file_bytes: a larger tree is split into several files beside the path, with an
        index, `model.safetensors.index.json`. A larger leaf gets a file of its own.

    Raises:
      ValueError: the name has another ending, two tensors have the same name, or the
        arrays of a compressed leaf do not match or have codes that `compress` cannot
        write.
      TypeError: a leaf is not an array, or has no values, or the format does not have
        its dtype.

    >>> import tempfile
    >>> from jaxsparse import compress_params
    >>> params = compress_params({"kernel": jnp.ones((64, 32)), "bias": jnp.ones(32)})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_sparse(f"{folder}/model.safetensors", params)
    ...     loaded = load_sparse(f"{folder}/model.safetensors")
    >>> loaded["kernel"].shape, loaded["kernel"].pattern
    ((64, 32), NM(n=2, m=4, transposable=False))
    """
    leaves = flatten(tree, is_leaf=is_compressed).by_path
    save_leaves(Path(path), leaves, max_file_bytes=max_file_bytes)


def save_leaves(
    path: Path,
    leaves: Mapping[str, Any],
    *,
    max_file_bytes: int = 5 * 10**9,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Saves leaves by path, with more metadata; otherwise like `save_sparse`."""
    checked_path(path)
    check_leaves(leaves)
    parts = _split_leaves(leaves, max_file_bytes)
    write_atomically(
        path,
        [partial(_write_leaves, part, metadata or {}) for part in parts],
        lambda names: index_text(names, list(map(_sizes, parts))),
    )


def load_sparse(
    path: str | os.PathLike[str], *, like: PyTree | None = None, verify: bool = True
) -> PyTree:
    """Loads a whole tree that `save_sparse` saved.

    Args:
      path: the path that it was saved to.
      like: a tree of arrays, `Compressed` or `jax.ShapeDtypeStruct` with the same
        paths, shapes and dtypes. A leaf that is compressed in the file may be an array
        in `like`. Leaves that are not arrays, as an Equinox module has, are returned.
      verify: whether to compare every tensor with its checksum. Files of earlier
        versions have no checksums.

    Returns:
      The leaves on the default device, in the containers of `like`, or by default in
      nested dicts.

    Raises:
      FileNotFoundError: the path has neither a file nor an index.
      SparseFileError: a file is invalid, incomplete or damaged, a compressed leaf has
        codes that `compress` cannot write, or the tree does not match `like`. It is a
        `ValueError` that names the file and the cause.
    """
    file = open_sparse(path, verify=verify)
    if like is None:
        return _nested(Path(path), dict(file))
    expected, structure = flatten(like, is_leaf=is_compressed)
    kept = {k: x for k, x in expected.items() if not is_array(x) and k not in file}
    _check_like(
        Path(path), {k: expected[k] for k in expected.keys() - kept}, file.specs
    )
    return structure.unflatten([kept[k] if k in kept else file[k] for k in expected])


def open_sparse(path: str | os.PathLike[str], *, verify: bool = True) -> SparseFile:
    """Opens a tree that `save_sparse` saved, to read single leaves.

    All headers are read and checked now, and each leaf is read on access. If a file
    has changed by then, reading its leaves raises `SparseFileError`.

    Args:
      path: the path that the tree was saved to.
      verify: whether to compare each leaf with its checksums when it is read.

    Returns:
      A mapping from paths to leaves.

    Raises:
      FileNotFoundError: the path has neither a file nor an index.
      SparseFileError: a file is invalid or incomplete.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_sparse(f"{folder}/model.safetensors", {"mlp": {"bias": jnp.ones(2)}})
    ...     leaves = open_sparse(f"{folder}/model.safetensors")
    ...     list(leaves), leaves["mlp/bias"]
    (['mlp/bias'], Array([1., 1.], dtype=float32))
    """
    path = Path(path)
    headers = _read_headers(path, verify)
    file = _open_headers(headers, read_specs)
    check_total(path, headers)
    return file


def open_tensors(path: str | os.PathLike[str], *, verify: bool = True) -> SparseFile:
    """Opens any safetensors file, or several with Hugging Face's index.

    Each tensor is read on access.

    Args:
      path: the file, `model.safetensors`; the index is `model.safetensors.index.json`.
      verify: whether to compare each tensor with its checksum when it is read, if the
        file has checksums.

    Returns:
      A mapping from names to tensors. For a file of `save_sparse`, it maps paths to
      leaves, which may be compressed.

    Raises:
      FileNotFoundError: the path has neither a file nor an index.
      SparseFileError: a file or the index is invalid.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_sparse(f"{folder}/model.safetensors", {"up.weight": jnp.ones((8, 16))})
    ...     open_tensors(f"{folder}/model.safetensors").specs["up.weight"]
    ShapeDtypeStruct(shape=(8, 16), dtype=float32)
    """
    headers = _read_headers(Path(path), verify)
    is_sparse = any(map(has_leaf_metadata, headers))
    return _open_headers(headers, read_specs if is_sparse else tensor_specs)


def _read_headers(path: Path, verify: bool) -> list[Header]:
    headers = read_headers(path)
    return headers if verify else [replace(x, checksums={}) for x in headers]


def _open_headers(
    headers: Iterable[Header], specs_of: Callable[[Header], dict[str, Spec]]
) -> SparseFile:
    all_specs: dict[str, Spec] = {}
    header_of: dict[str, Header] = {}
    for header in headers:
        specs = specs_of(header)
        if duplicates := all_specs.keys() & specs.keys():
            cause = f"leaves {sorted(duplicates)} are also in another file"
            raise SparseFileError(header.path, cause)
        all_specs |= specs
        header_of |= dict.fromkeys(specs, header)
    return SparseFile(all_specs, header_of)


def _write_leaves(
    leaves: Mapping[str, Any], metadata: Mapping[str, str], file: BinaryIO
) -> None:
    tensors = tensors_by_name(leaves)
    all_metadata = {**leaf_metadata(leaves), **metadata}
    write_tensors(file, tensors, tensors.__getitem__, all_metadata, checksums=True)


def _split_leaves(
    leaves: Mapping[str, Any], max_file_bytes: int
) -> list[dict[str, Any]]:
    """Returns the leaves of each file, in order; both arrays of a leaf share a file."""
    parts: list[dict[str, Any]] = [{}]
    free_bytes = max_file_bytes
    for path, leaf in leaves.items():
        size = sum(_sizes({path: leaf}).values())
        if size > free_bytes and parts[-1]:
            parts.append({})
            free_bytes = max_file_bytes
        parts[-1][path] = leaf
        free_bytes -= size
    return parts


def _sizes(leaves: Mapping[str, Any]) -> dict[str, int]:
    """Returns the bytes of each tensor by name."""
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
    file: Path, expected: Mapping[str, Any], specs: Mapping[str, Spec]
) -> None:
    for path in sorted(expected.keys() | specs.keys()):
        leaf, spec = expected.get(path), specs.get(path)
        with_pattern = isinstance(leaf, Compressed)  # an array accepts any storage
        if _describe(leaf, with_pattern) != _describe(spec, with_pattern):
            cause = (
                f"leaf {path!r} is {_describe(spec)}, but in `like` it is "
                f"{_describe(leaf)}: give the tree that was saved, as arrays or shapes"
            )
            raise SparseFileError(file, cause)


def _describe(leaf: Any, with_pattern: bool = True) -> str:
    if not is_array(leaf):
        return "missing" if leaf is None else repr(leaf)
    text = f"{jnp.dtype(leaf.dtype).name}{list(leaf.shape)}"
    if isinstance(leaf, Compressed) and with_pattern:
        text += f" of {leaf.pattern} along axis {leaf.axis}"
        text += f" in {leaf.values.dtype}" if leaf.is_quantized else ""
    return text
