"""Sparse trees as files: safetensors, in which n:m weights are without their zeros.

`save_sparse`, `load_sparse`, and `open_sparse` for single leaves. A leaf is a tensor
named by its canonical path, `mlp/kernel`; a compressed one is two, `mlp/kernel/values`
and `mlp/kernel/indices`, and the metadata have its pattern, axis, shape and dtype.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxsparse._compress import Compressed, is_compressed
from jaxsparse._paths import flatten, is_array
from jaxsparse._safetensors import (
    Header,
    SparseFileError as SparseFileError,
    file_chunks,
    read_header,
)
from jaxsparse._shards import (
    index_of,
    index_text,
    leftovers,
    read_index,
    shard_names,
    split_leaves,
)
from jaxsparse._stored_leaves import (
    Spec,
    check_leaves,
    describe,
    read_leaf,
    read_specs,
    tensors_of,
)


@dataclass(frozen=True, eq=False)
class SparseFile(Mapping):  # no parameters: checkers of types would look at a leaf
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
    path = _checked_path(path)
    leaves, _ = flatten(tree, is_leaf=is_compressed)
    check_leaves(leaves)
    parts = split_leaves(leaves, max_file_bytes)
    token = os.urandom(4).hex()
    if len(parts) == 1:
        names = []
        _replace(path, token, _file_of(parts[0]))
        index_of(path).unlink(missing_ok=True)  # only now this file counts
    else:
        names = shard_names(path, token, len(parts))
        try:
            for name, part in zip(names, parts, strict=True):
                _replace(path.with_name(name), token, _file_of(part))
        except BaseException:
            for name in names:
                path.with_name(name).unlink(missing_ok=True)
            raise
        _replace(index_of(path), token, [index_text(names, parts).encode()])
        path.unlink(missing_ok=True)
    for file in leftovers(path, keep=names):
        file.unlink(missing_ok=True)


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
    path = _checked_path(path)
    index = index_of(path)
    if not index.exists():
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}, and none {index}")
        return _merged([path])
    weight_map, total = read_index(index)
    found = _merged(
        [index.with_name(name) for name in sorted(set(weight_map.values()))]
    )
    there = {
        tensor: found.headers[leaf].path.name
        for leaf, spec in found.specs.items()
        for tensor in tensors_of(leaf, spec)
    }
    if there != weight_map:
        wrong = sorted(dict(there.items() ^ weight_map.items()))
        raise SparseFileError(index, f"the files have other tensors: {wrong[:3]}")
    headers = {header.path: header for header in found.headers.values()}.values()
    size = sum(entry.nbytes for header in headers for entry in header.entries.values())
    if total != size:
        raise SparseFileError(index, f"the tensors have {size} bytes, not {total}")
    return found


def _checked_path(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} has to end in .safetensors")
    return path


def _file_of(leaves: Mapping[str, Any]) -> Iterator[bytes | memoryview]:
    tensors = {}
    for path, leaf in leaves.items():
        tensors |= tensors_of(path, leaf)
    return file_chunks(tensors, describe(leaves))


def _replace(path: Path, token: str, chunks: Iterable[bytes | memoryview]) -> None:
    """Writes a file beside its place, through to the disk, and then moves it there."""
    pending = path.with_name(f"{path.name}.{token}.tmp")
    try:
        with open(pending, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(pending, path)
    except BaseException:
        pending.unlink(missing_ok=True)
        raise


def _merged(files: list[Path]) -> SparseFile:
    specs: dict[str, Spec] = {}
    headers: dict[str, Header] = {}
    for file in files:
        header = read_header(file)
        found = read_specs(header)
        if twice := specs.keys() & found.keys():
            raise SparseFileError(
                file, f"leaves {sorted(twice)} are in another file too"
            )
        specs |= found
        headers |= dict.fromkeys(found, header)
    return SparseFile(specs, headers)


def _nested(file: Path, leaves: dict[str, Any]) -> PyTree:
    if list(leaves) == [""]:  # a tree that is one leaf
        return leaves[""]
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or name in node:
            cause = f"leaf {path!r} is within another one: give a tree with `like`"
            raise SparseFileError(file, cause)
        node[name] = leaf
    return tree


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
