"""Tensors in several files, and the index that maps each tensor to its file.

The index has Hugging Face's format and name, `model.safetensors.index.json`. It alone
decides which files are read. Every save gives the files new names, so replacing the
index replaces all of them at once.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxsparse._files.parse import SparseFileError, is_text_map, parse_object
from jaxsparse._files.safetensors import Header, read_header


def index_of(path: Path) -> Path:
    """Returns the path of the index of a path, whether or not it exists."""
    return path.with_name(f"{path.name}.index.json")


def without_index(path: Path) -> Path:
    """Returns the path without the `.index.json` of an index."""
    return path.parent / path.name.removesuffix(".index.json")


def checked_path(path: Path) -> Path:
    """Returns the path; raises `ValueError` unless it ends in `.safetensors`."""
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} must end in .safetensors")
    return path


def shard_names(path: Path, token: str, count: int) -> list[str]:
    """Returns the names of `count` files beside a path."""
    return [
        f"{path.stem}-{token}-{i:05}-of-{count:05}.safetensors"
        for i in range(1, count + 1)
    ]


def stale_files(path: Path, keep: Iterable[str]) -> list[Path]:
    """Returns the files of earlier saves to a path, recognised by their names."""
    stem = re.escape(path.stem)
    shard = rf"{stem}-[0-9a-f]{{8}}-\d{{5,}}-of-\d{{5,}}\.safetensors"
    pending = rf"({shard}|{stem}\.safetensors(\.index\.json)?)\.[0-9a-f]{{8}}\.tmp"
    return [
        file
        for file in path.parent.iterdir()
        if re.fullmatch(f"{shard}|{pending}", file.name) and file.name not in keep
    ]


def index_text(
    names: Sequence[str],
    sizes: Sequence[Mapping[str, int]],
    metadata: Mapping[str, Any] | None = None,
) -> str:
    """Returns the text of the index of several files.

    Args:
      names: the names of the files.
      sizes: for each file, the bytes of its tensors by name.
      metadata: metadata of the index besides `total_size`.
    """
    weight_map = {
        tensor: name
        for name, tensors in zip(names, sizes, strict=True)
        for tensor in tensors
    }
    total = sum(size for tensors in sizes for size in tensors.values())
    index = {
        "metadata": {**(metadata or {}), "total_size": total},
        "weight_map": weight_map,
    }
    return json.dumps(index, indent=2)


def index_metadata(path: Path) -> dict[str, Any]:
    """Returns the metadata of the index of a path, empty if it has no index."""
    index = index_of(path)
    return _read_index(index)[1] if index.exists() else {}


def read_headers(path: Path) -> list[Header]:
    """Returns the header of a file, or those of the files that its index names.

    Raises:
      FileNotFoundError: there is neither a file nor an index.
      SparseFileError: a file or the index is invalid, or they do not match.
    """
    index = index_of(checked_path(path))
    if not index.exists():
        if not path.is_file():
            raise FileNotFoundError(f"there is neither a file {path} nor {index}")
        return [read_header(path)]
    weight_map, _ = _read_index(index)
    names = sorted(set(weight_map.values()))
    headers = [read_header(index.with_name(name)) for name in names]
    file_of: dict[str, str] = {}
    for header in headers:
        if duplicates := file_of.keys() & header.entries.keys():
            cause = f"tensors {sorted(duplicates)[:3]} are also in another file"
            raise SparseFileError(header.path, cause)
        file_of |= dict.fromkeys(header.entries, header.path.name)
    if file_of != weight_map:
        different = sorted(dict(file_of.items() ^ weight_map.items()))
        cause = f"its tensors are not those of the files: {different[:3]}"
        raise SparseFileError(index, cause)
    if not file_of:
        raise SparseFileError(index, "it names no tensor")
    return headers


def check_total(path: Path, headers: Iterable[Header]) -> None:
    """Checks the total size in the index, if there is one.

    Only for files of `save_sparse`: other programs count tied weights once or twice.

    Raises:
      SparseFileError: the total is wrong.
    """
    index = index_of(path)
    if not index.exists():
        return
    total = index_metadata(path).get("total_size")
    size = sum(entry.nbytes for header in headers for entry in header.entries.values())
    if total != size:
        cause = f"its tensors have {size} bytes, but its total_size is {total}"
        raise SparseFileError(index, cause)


def _read_index(index: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Returns the `weight_map`, from tensor to file, and the metadata of an index.

    Raises:
      SparseFileError: it is invalid, or names a file that is not in its folder.
    """
    try:
        contents = parse_object(index, index.read_bytes())
        weight_map, metadata = contents.get("weight_map"), contents.get("metadata")
        if not is_text_map(weight_map) or not isinstance(metadata, dict):
            raise SparseFileError(index, "it must have a weight_map and metadata")
        for name in set(weight_map.values()):
            if not _is_beside(index, name):
                cause = f"there is no file {name!r} beside it: copy all of its files"
                raise SparseFileError(index, cause)
    except OSError as error:
        raise SparseFileError(index, error) from error
    return weight_map, metadata


def _is_beside(index: Path, name: str) -> bool:
    """Returns whether a name is that of a file in the folder of the index.

    The file may be a link, like all files in Hugging Face's cache: an index comes from
    elsewhere, but a link was made by someone with access to the folder.
    """
    if Path(name).name != name:
        return False
    try:
        return (index.parent / name).is_file()
    except ValueError:  # not a valid file name
        return False
